"""Likeness of visual tokens to the question where there is no text tower."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

import vtc
from tests.families import docowl, matrix, mllama, tiny
from tests.hf.methods import keep_best
from vtc import AsksText, CompressedTokens, VisualTokens
from vtc.functional.similarity import token_similarity

WORDS = {"<unk>": 0, "what": 20, "is": 21, "red": 22, "left": 23}


@dataclass
class Likest(AsksText):
    """Keeps the tokens that are most like the question, and shows what it saw."""

    name: ClassVar[str] = "likest"
    signals: ClassVar[tuple[str, ...]] = ("text_similarity",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: list[VisualTokens] = []

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        self.seen.append(tokens)
        return keep_best(self, tokens, tokens.signal("text_similarity"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize(
    "family", ["llava", "llava_next", "qwen2_5_vl", "internvl", "idefics3", "gemma3"]
)
def test_dot_products_with_the_words(family: str, tokenizer: Any) -> None:
    """The features are what the language model reads, the words its own embeddings."""
    model, batch = tiny.build(family), tiny.inputs(family, [[tiny.A]])
    method = Likest(retention=0.5, question="what is red")
    with torch.no_grad(), vtc.compress(model, method, processor=tokenizer):
        model(**batch)
    (seen,) = method.seen
    words = model.get_input_embeddings()(torch.tensor([20, 21, 22]))
    want = token_similarity(seen.features.flatten(0, 1)[None], words)[0].mean(-1)
    got = seen.signals["text_similarity"].flatten()
    valid = seen.valid.flatten()
    torch.testing.assert_close(got[valid], want[valid])
    assert valid.any() and not got[~valid].any()


#: families whose vision tower comes from no CLIP or SigLIP model, and some others
WITHOUT = [name for name in tiny.FAMILIES if name != tiny.UNKNOWN and not matrix.has_twin(name)]


def test_families_without_a_text_tower() -> None:
    assert {"qwen2_vl", "qwen3_vl", "internvl", "idefics3", "llava_pixtral"} <= set(WITHOUT)
    assert not {"llava", "llava_siglip", "llava_next", "gemma3", "paligemma"} & set(WITHOUT)


@pytest.mark.parametrize("family", [*WITHOUT, "llava_next", "llava_siglip"])
def test_recoverable_without_a_text_tower(family: str, tokenizer: Any) -> None:
    model, batch = tiny.built(family), tiny.inputs(family, tiny.MIXED)
    kept = []
    for question in ("what is red", "left"):
        guided = dict(retention=0.5, text_score="similarity", question=question, text_k=3)
        with (
            torch.no_grad(),
            vtc.compress(model, "recoverable", processor=tokenizer, **guided) as run,
        ):
            model(**batch)
        images = run.reports[-1].images
        assert all(image.patches_after == image.patches_before // 2 for image in images)
        kept.append([image.kept for image in images])
    if math.prod(images[0].patch_grid) > 4:  # else there is not much to choose from
        assert kept[0] != kept[1], "another question keeps other patches"


def test_recoverable_on_docowl(tokenizer: Any) -> None:
    """Its tower comes from no CLIP model either."""
    model, batch = docowl.build(), docowl.inputs()
    guided = dict(retention=0.5, text_score="similarity", question="left")
    with torch.no_grad(), vtc.compress(model, "recoverable", processor=tokenizer, **guided) as run:
        assert model(**batch).logits.isfinite().all()
    assert all(i.patches_after == i.patches_before // 2 for i in run.reports[-1].images)


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "internvl", "llava_siglip"])
def test_coverage_weighed_by_the_question(family: str, tokenizer: Any) -> None:
    """Another question keeps other patches, and none prefers nothing."""
    model, batch = tiny.built(family), tiny.inputs(family, [[tiny.A]])
    guided = dict(retention=0.25, guidance=1.0, text_score="similarity")
    kept = []
    for question in ("what is red", "left", None):
        method = vtc.create_method("coverage", question=question or "", **guided)
        with torch.no_grad(), vtc.compress(model, method, processor=tokenizer) as run:
            model(**batch)
        kept.append(run.reports[-1].images[0].kept)
    assert len({str(each) for each in kept}) == 3
    with pytest.raises(vtc.VTCError, match="processor: got None"):
        vtc.apply(model, "coverage", question="left", **guided)
    # without a share of the question nothing of it is needed, not even a tokenizer
    with torch.no_grad(), vtc.compress(model, "coverage", retention=0.25):
        model(**batch)


def test_an_empty_question_prefers_nothing(tokenizer: Any) -> None:
    model, batch = tiny.build("llava"), tiny.inputs("llava", [[tiny.A]])
    method = Likest(retention=0.5, question="")
    with torch.no_grad(), vtc.compress(model, method, processor=tokenizer):
        model(**batch)
    assert not method.seen[0].signals["text_similarity"].any()


def test_refused_where_it_cannot_work(tokenizer: Any) -> None:
    with pytest.raises(vtc.VTCError, match="reads images by cross-attention"):
        vtc.apply(mllama.build(), Likest(retention=0.5, question="left"), processor=tokenizer)
    guided = vtc.create_method("coverage", guidance=0.5, text_score="similarity", question="left")
    with pytest.raises(vtc.VTCError, match="reads images by cross-attention"):
        vtc.apply(mllama.build(), guided, processor=tokenizer)
    with pytest.raises(vtc.VTCError, match="text_encoder: got 'x', but text_score='similarity'"):
        vtc.create_method("recoverable", text_score="similarity", text_encoder="x")
    with pytest.raises(vtc.VTCError, match="processor: got None"):
        vtc.apply(tiny.build("llava"), Likest(retention=0.5, question="left"))
