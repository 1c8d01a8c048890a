"""SigLIP's own text head guides methods on towers that came from a SigLIP model."""

from __future__ import annotations

import copy
import gc
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

import vtc
from tests.families import tiny
from tests.hf.methods import Guided
from vtc import AsksText, SignalRequest
from vtc.eval import reference as eval_reference
from vtc.plugins.hf.text_encoder import SiglipTextEncoder, TextEncoder, load_text_encoder
from vtc.tokens import keep_patches


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


# -- whose it is -------------------------------------------------------------------------------


def towers() -> list[torch.nn.Module]:
    """Text towers that are alive."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is tf.SiglipTextModel]


def guide(siglip: Path, question: str | None = "left") -> Guided:
    return Guided(retention=0.5, question=question, text_encoder=str(siglip))


def test_an_encoder_lives_as_long_as_it_is_on_a_model(siglip: Path) -> None:
    """It goes with the patch, also where handles are kept for their reports."""
    one, two = tiny.build("paligemma"), tiny.build("llava_siglip")
    before = len(towers())
    first, second = vtc.apply(one, guide(siglip)), vtc.apply(two, guide(siglip))
    assert first.text_encoder is second.text_encoder
    assert len(towers()) == before + 1, "shared while both are on"
    first.remove()
    assert first.text_encoder is None and len(towers()) == before + 1
    vtc.remove(two)
    assert len(towers()) == before
    with vtc.compress(one, guide(siglip)) as run:
        assert len(towers()) == before + 1
    assert len(towers()) == before and run.reports == []
    kept = vtc.apply(one, guide(siglip)).text_encoder
    vtc.remove(one)
    with vtc.compress(one, guide(siglip)) as run:
        assert run.text_encoder is kept, "whoever holds it keeps it loaded"


def test_a_patch_that_comes_back_has_its_encoder(siglip: Path) -> None:
    """A handle that is entered again, and a patch that another one hid."""
    model, batch = tiny.build("paligemma"), tiny.inputs("paligemma", tiny.ONE)

    def kept(run: vtc.Handle) -> list:
        with torch.no_grad():
            model(**batch)
        return [image.kept for image in run.reports[-1].images]

    outer = vtc.apply(model, guide(siglip, "what is red"))
    expected = kept(outer)
    with vtc.compress(model, "random", retention=0.5):
        model(**batch)
    assert kept(outer) == expected
    outer.remove()
    for _ in range(2):
        with outer:
            assert kept(outer) == expected
            with vtc.compress(model, guide(siglip)) as inner, outer:
                assert kept(outer) == expected
            assert inner.text_encoder is None
            assert kept(outer) == expected


class Elsewhere(torch.nn.Module):
    """A model on a device without numbers, which is one more device on any machine."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))


def test_devices_do_not_take_it_from_each_other(siglip: Path) -> None:
    encoder = load_text_encoder(str(siglip), torch.nn.Linear(1, 1), 32, False)
    before = encoder.embed("left")
    away = encoder.project(torch.zeros(1, 3, 32, device="meta"))
    assert away.device.type == "meta", "projected where the patches are"
    assert encoder.device.type == "cpu" and encoder.embed("left") is before
    assert encoder.project(torch.zeros(1, 3, 32)).device.type == "cpu"
    there = encoder.on(torch.device("meta"))
    assert there.device.type == "meta" and there is encoder.on(torch.device("meta"))
    assert there.on(torch.device("cpu")) is encoder, "and the way back"
    offloaded = load_text_encoder(siglip, Elsewhere(), 32, False)
    assert offloaded is encoder, "where numbers are"
    assert load_text_encoder(siglip, Elsewhere(), 32, True) is not encoder, "it reads differently"


def test_a_relative_path_is_not_another_folder_s(siglip: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a", "b"):
        shutil.copytree(siglip, tmp_path / name / "clip", ignore=shutil.ignore_patterns("a", "b"))
    found = []
    for name in ("a", "b", "a"):
        monkeypatch.chdir(tmp_path / name)
        found.append(load_text_encoder("clip", torch.nn.Identity(), 32, False))
    assert found[0] is found[2] is not found[1]


def test_a_model_that_was_not_loaded_brings_none(siglip: Path, tmp_path: Path, monkeypatch) -> None:
    """Whatever folder `clip` the caller happens to work beside."""
    shutil.copytree(siglip, tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    for name in ("", None):
        model = torch.nn.Identity()
        model.name_or_path = name
        with pytest.raises(
            vtc.VTCError, match="text_encoder: got None, and the checkpoint brings none"
        ):
            load_text_encoder(None, model, 32, False)


def test_what_is_cached_under_inference_mode_can_be_trained_with(siglip: Path) -> None:
    with torch.inference_mode():
        encoder = load_text_encoder(str(siglip), torch.nn.Identity(), 32, False)
        encoder.embed("left")
    hidden = torch.randn(1, 3, 32, requires_grad=True)
    (encoder.project(hidden) @ encoder.embed("left")).sum().backward()
    assert hidden.grad is not None and hidden.grad.any()


def test_threads_load_one_and_read_it_together(siglip: Path) -> None:
    """Cold, with more texts than are remembered; every answer is that of one thread alone."""
    texts = [f"what is {word}" for word in ("red", "left", "is")] + [
        f"left {'is ' * (n % 6)}{n}" for n in range(300)
    ]
    barrier = threading.Barrier(4)

    def ask(number: int) -> tuple[SiglipTextEncoder, list[torch.Tensor]]:
        barrier.wait()
        encoder = load_text_encoder(str(siglip), torch.nn.Identity(), 32, False)
        turned = texts[number * 50 :] + texts[: number * 50]
        said = dict(zip(turned, map(encoder.embed, turned), strict=True))
        return encoder, [said[text] for text in texts]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert len({id(encoder) for encoder, _ in found}) == 1
    assert len(found[0][0]._cache) <= 256
    alone = SiglipTextEncoder(siglip, 32)
    for place, text in enumerate(texts):
        expected = alone.embed(text)
        for _, said in found:
            assert torch.equal(said[place], expected)


def test_a_copied_model_has_its_own(siglip: Path) -> None:
    model = tiny.build("paligemma")
    vtc.apply(model, guide(siglip))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._vtc.patch.text_encoder is not model._vtc.patch.text_encoder
        assert torch.equal(
            twin._vtc.patch.text_encoder.embed("left"), model._vtc.patch.text_encoder.embed("left")
        )
    vtc.remove(model)


def test_wrong_width_is_named(siglip: Path) -> None:
    with pytest.raises(vtc.VTCError, match="width 32, but this model's vision tower has width 48"):
        load_text_encoder(siglip, torch.nn.Identity(), 48, False)


CLIP = Path(eval_reference.__file__).parent / "checkpoint" / "clip"


def test_pieces_and_words_of_a_long_question() -> None:
    """Of CLIP's text tower with its projection, run by transformers' own class on ids made here."""
    width = tf.CLIPModel.from_pretrained(CLIP).config.vision_config.hidden_size
    encoder = TextEncoder(CLIP, width)
    whole = tf.CLIPTextModelWithProjection.from_pretrained(CLIP).eval().float()
    for part in encoder.parts:  # saved in half precision
        getattr(encoder, part).float()
    most = encoder.max_length
    for text in ("red", " ".join(["red", "square", "left", "of", "the"] * most)):
        ids = encoder.tokenizer(text)["input_ids"]
        rows = -(-len(ids) // most)
        padded = torch.tensor(ids + [0] * (rows * most - len(ids))).view(rows, most)
        mask = (torch.arange(rows * most) < len(ids)).long().view(rows, most)
        with torch.no_grad():
            want = whole(input_ids=padded, attention_mask=mask).text_embeds
        torch.testing.assert_close(encoder.segments(text), want)
        assert len(want) == (1 if text == "red" else rows) and (text == "red" or rows > 1)
    ids = torch.tensor([encoder.tokenizer("red square")["input_ids"]])
    with torch.no_grad():
        hidden = whole.text_model(input_ids=ids).last_hidden_state[0]
        want = whole.text_projection(hidden)
    torch.testing.assert_close(encoder.sequence("red square"), want)


def test_what_a_pair_of_functions_cannot_do() -> None:
    model = tiny.build("llava")
    embed, project = (lambda text: torch.zeros(4)), (lambda hidden: hidden[..., :4])

    @dataclass
    class Pieces(AsksText):
        name: ClassVar[str] = "pieces"

        def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
            return {"text_segments": SignalRequest("text_segments")}

        def compress(self, tokens: Any) -> Any:
            return keep_patches(tokens, tokens.valid)

    method = Pieces(0.5, text_encoder=(embed, project), question="what")
    with torch.no_grad(), vtc.compress(model, method), pytest.raises(vtc.VTCError) as error:
        model(**tiny.inputs("llava", [[tiny.A]]))
    assert "has no 'segments', which method 'pieces' reads of a question" in str(error.value)
