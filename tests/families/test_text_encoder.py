"""SigLIP's own text head guides methods on towers that came from a SigLIP model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

import vtc
from tests.families import tiny
from tests.hf.methods import Guided
from vtc.plugins.hf.text_encoder import SiglipTextEncoder, load_text_encoder


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    """A tiny SigLIP checkpoint with a tokenizer."""
    torch.manual_seed(0)
    text = dict(
        vocab_size=20,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8,
        projection_size=32,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=1,
    )
    model = tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=tiny.VISION))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    model.save_pretrained(tmp_path)
    words = {"<unk>": 0, "</s>": 1, "what": 2, "is": 3, "red": 4, "left": 5}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="</s>", eos_token="</s>"
    ).save_pretrained(tmp_path)
    return tmp_path


def test_embeddings_are_the_models_own(siglip: Path) -> None:
    """Text as the model embeds it; a patch as an image that consists of it."""
    encoder = load_text_encoder(str(siglip), torch.nn.Identity(), 32, False)
    assert isinstance(encoder, SiglipTextEncoder)
    assert load_text_encoder(str(siglip), torch.nn.Identity(), 32, False) is encoder
    model = tf.SiglipModel.from_pretrained(siglip).eval()
    ids = torch.tensor([[2, 3, 4, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        theirs = model.text_model(input_ids=ids).pooler_output[0]
        torch.testing.assert_close(encoder.embed("what is red"), theirs)
        vision = getattr(model.vision_model, "vision_model", model.vision_model)
        hidden = torch.randn(2, 3, 32)
        got = encoder.project(hidden)
        for tile in range(2):
            for patch in range(3):
                one = vision.head(vision.post_layernorm(hidden[tile, patch])[None, None])[0]
                torch.testing.assert_close(got[tile, patch], one)


@pytest.mark.parametrize("family", ["llava_siglip", "paligemma", "llava_onevision", "gemma3"])
def test_recoverable_with_siglip(family: str, siglip: Path) -> None:
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    kept = []
    with torch.no_grad():
        with vtc.compress(
            model, "recoverable", retention=0.5, question="left", text_encoder=str(siglip)
        ):
            model(**batch)
        for question in ("what is red", "left"):
            guided = Guided(retention=0.5, question=question, text_encoder=str(siglip))
            with vtc.compress(model, guided) as run:
                model(**batch)
            kept.append([image.kept for image in run.reports[-1].images])
    assert kept[0] != kept[1], "another question keeps other patches"


def test_wrong_width_is_named(siglip: Path) -> None:
    with pytest.raises(vtc.VTCError, match="width 32, but this model's vision tower has width 48"):
        load_text_encoder(siglip, torch.nn.Identity(), 48, False)
