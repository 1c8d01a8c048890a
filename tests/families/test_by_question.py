"""Shares by how a question begins, on live models: each row as it is with its own share."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests import asking
from tests.families import mllama, tiny
from tests.families.test_budgets import call
from vtc.eval.common.loading import Loaded, load
from vtc.eval.common.prompts import prompt
from vtc.eval.reference.scene import make_scene
from vtc.plugins.hf.stages.boundary import shorten

SHARES = {"how many": 1.0, "what": 0.1, "*": 0.3}
QUESTIONS = ["How many red shapes are there ?", "what color is the circle ?", "where is it ?"]
ROWS = [1.0, 0.1, 0.3]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("reference", "cpu")


def batch(loaded: Loaded, rows: slice = slice(None), pictures: int = 1) -> dict[str, torch.Tensor]:
    scenes = [[make_scene("val", 84, n + 9 * p).image for p in range(pictures)] for n in range(3)]
    prompts = [prompt(loaded.processor, question, pictures) for question in QUESTIONS]
    return dict(loaded.batch(scenes[rows], prompts[rows]))


@pytest.mark.parametrize("method", ["divprune", "coverage", "recoverable"])
def test_a_batch_is_what_it_is_with_a_share_for_each_image(loaded: Loaded, method: str) -> None:
    """Bit for bit what the list of shares makes of it, for a method that reads the question as well."""
    inputs, bits = batch(loaded), []
    options = {"text_score": "similarity"} if method == "recoverable" else {}
    for shares in (SHARES, ROWS):
        with vtc.compress(
            loaded.model, method, retention=shares, processor=loaded.processor, **options
        ) as run, torch.no_grad():  # fmt: skip
            bits.append(loaded.model(**inputs).logits)
        kept = [image.retention for image in run.reports[-1]]
        assert kept[0] == 1.0 and kept[1] < kept[2] < 0.31
    assert torch.equal(*bits)


@pytest.mark.parametrize(
    "family, method, options, rows",
    [
        ("qwen2_5_vl", "uniform", {}, [[tiny.CLIP, tiny.A], [tiny.B], [tiny.A, tiny.CLIP]]),
        ("qwen2_5_vl", "pixelprune", {"before": "tower"}, [[tiny.B, tiny.C], [tiny.A]]),
        ("llava_next", "divprune", {}, [[tiny.A], [tiny.B, tiny.C]]),
    ],
)
def test_every_image_and_clip_of_a_row_has_its_share(
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    method: str,
    options: dict[str, str],
    rows: tiny.Rows,
) -> None:
    """In reading order, images and clips alike, and also where it is decided before the tower; the
    random ids of tiny models stand for words."""
    model, inputs = tiny.built(family), tiny.inputs(family, rows)
    monkeypatch.setattr(shorten, "asked", lambda method, tokenizer, ids: f"w{int(ids.sum())} is")
    words = ~torch.isin(inputs["input_ids"], torch.tensor([tiny.IMAGE, tiny.VIDEO]))
    words &= inputs["attention_mask"].bool()
    names = [
        f"w{int(ids[seen].sum())}" for ids, seen in zip(inputs["input_ids"], words, strict=True)
    ]
    assert len(set(names)) == len(rows)
    each = [1.0, 0.25, 0.5][: len(rows)]
    by_row = dict(zip(names, each, strict=True), **{"*": 0.9})
    listed = [share for share, row in zip(each, rows, strict=True) for _ in row]
    want = call(model, inputs, method, retention=listed, **options)
    got = call(model, inputs, method, retention=by_row, processor=asking.tokenizer(), **options)
    assert [image.kept for image in got] == [image.kept for image in want]
    assert [image.asked for image in got] == [image.asked for image in want]


def test_every_row_is_as_it_is_alone(loaded: Loaded) -> None:
    """And the one with everything has the very bits of the bare model."""
    with torch.no_grad(), vtc.compress(loaded.model, "divprune", retention=SHARES) as run:
        together = loaded.answer(batch(loaded), max_new_tokens=8)
        kept = [image.kept for image in run.reports[0]]
        for number in range(3):
            rows = slice(number, number + 1)
            assert loaded.answer(batch(loaded, rows), max_new_tokens=8) == [together[number]]
            assert run.reports[-1].images[0].kept == kept[number]
        first = loaded.model(**batch(loaded, slice(0, 1))).logits
    with torch.no_grad():
        assert torch.equal(first, loaded.model(**batch(loaded, slice(0, 1))).logits)


def test_all_images_of_a_question_have_its_share(loaded: Loaded) -> None:
    inputs = batch(loaded, pictures=2)
    report = call(loaded.model, inputs, "divprune", retention=SHARES)
    assert [image.asked == image.patches_before for image in report] == [True] * 2 + [False] * 4
    shares = [image.retention for image in report]
    assert max(shares[2:4]) <= 0.1 < min(shares[4:]) <= max(shares[4:]) <= 0.3


def test_a_configuration_brings_it(loaded: Loaded) -> None:
    config = vtc.CompressionConfig("divprune", retention=SHARES)
    handle = vtc.apply_from_config(loaded.model, config)
    with torch.no_grad():
        loaded.model(**batch(loaded))
    assert [image.retention for image in handle.reports[-1]][0] == 1.0
    assert handle.reports[-1].settings["retention"] == SHARES
    handle.remove()


def test_models_with_cross_attention_have_one_share() -> None:
    model = mllama.build()
    with pytest.raises(vtc.VTCError, match="retention: got shares by question, .*cross-attention"):
        vtc.apply(model, "uniform", retention=SHARES)
