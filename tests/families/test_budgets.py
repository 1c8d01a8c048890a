"""Budgets of a call: image by image in reading order, more than there is, and what is said of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from torch import Tensor

import vtc
from tests.families import matrix, mllama, tiny
from vtc import CompressedTokens, Method
from vtc.batch import ImageBatch
from vtc.report import Report

VIDEO = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "video_llava", "llava_next_video"]
CLIP, A, B, SMALL = tiny.CLIP, tiny.A, tiny.B, ("image", (20, 20))
#: rows that show clips in front of images, behind them, and between
ROWS: list[tiny.Rows] = [[[CLIP, A]], [[A, CLIP]], [[CLIP, A], [B], [A, CLIP]], [[CLIP], [A]]]
SHARES = (0.9, 0.2, 0.5, 0.7, 0.35)


def kinds(batch: dict[str, Tensor]) -> list[str]:
    """Images and clips of a batch as a reader meets them."""
    tokens = {tiny.IMAGE: "image", tiny.VIDEO: "video"}
    out: list[str] = []
    for row in batch["input_ids"].tolist():
        # words stand between two images, and nothing but one token in front of a part of a clip
        runs = [(tokens.get(t), len(list(group))) for t, group in groupby(row)]
        shown = [kind for kind, _ in runs if kind is not None]
        out += [kind for kind, _ in groupby(shown)] if "video" in shown else shown
    return out


def call(model: Any, batch: dict[str, Tensor], method: Any, **options: Any) -> Report:
    with torch.no_grad(), vtc.compress(model, method, **options) as run:
        model(**batch)
    return run.reports[-1]


@pytest.mark.parametrize("rows", ROWS, ids=range(len(ROWS)))
@pytest.mark.parametrize("family", VIDEO)
def test_lists_and_reports_follow_the_prompt(family: str, rows: tiny.Rows) -> None:
    """Row by row, left to right, clips among images; every one as it is alone with its own share."""
    model, batch = tiny.built(family), tiny.inputs(family, rows)
    order = [kind for row in rows for kind, _ in row]
    assert kinds(batch) == order
    shares = list(SHARES[: len(order)])
    whole = call(model, batch, "uniform", retention=1.0)
    assert [image.frames > 1 for image in whole] == [kind == "video" for kind in order]
    report = call(model, batch, "uniform", retention=shares)
    assert [image.sample for image in report] == [n for n, row in enumerate(rows) for _ in row]
    for image, before, share in zip(report, whole, shares, strict=True):
        assert image.patches_before == before.patches_before
        wanted = max(1, math.floor(share * before.patches_before + 1e-9))
        assert image.patches_after == image.asked == wanted and image.note == ""
    # each as with one share for all
    for number, share in enumerate(shares):
        alike = call(model, batch, "uniform", retention=share).images[number]
        assert report.images[number].kept == alike.kept
    counts = [3, 5, 2, 4, 6][: len(order)]
    report = call(model, batch, "uniform", tokens=counts)
    assert [image.patches_after for image in report] == counts


@pytest.mark.parametrize("family", VIDEO)
def test_a_list_gives_what_the_language_model_gives_alone(family: str) -> None:
    """The same logits as from a prompt in which the second item alone is compressed."""
    model, batch = tiny.built(family), tiny.inputs(family, [[CLIP, A]])
    with torch.no_grad(), vtc.compress(model, "uniform", retention=[1.0, 0.3]) as run:
        ours = model(**batch).logits
    clip, image = run.reports[-1].images
    assert clip.frames > 1 and clip.retention == 1 and image.retention < 0.31
    columns = run.compaction.slot[0]
    kept = batch["input_ids"][0][columns]
    assert int((kept == tiny.VIDEO).sum()) == int((batch["input_ids"] == tiny.VIDEO).sum())
    assert int((kept == tiny.IMAGE).sum()) == image.tokens_after
    assert ours.shape[1] == len(columns)


def test_lists_of_another_length_name_it() -> None:
    model, batch = tiny.build("qwen2_vl"), tiny.inputs("qwen2_vl", [[CLIP, A]])
    with vtc.compress(model, "uniform", retention=[0.5]):
        with pytest.raises(vtc.VTCError, match=r"retention: got 1 values, .* has 2 image\(s\)"):
            model(**batch)


@pytest.mark.parametrize("video", ["clip", "frame"])
@pytest.mark.parametrize("family", VIDEO)
@pytest.mark.parametrize("method", ["uniform", "pool", "globalcom2"])
def test_more_tokens_than_a_clip_or_frame_has(method: str, family: str, video: str) -> None:
    """The very bits of the bare model, and a report that says so."""
    model, batch = tiny.built(family), tiny.inputs(family, [[CLIP], [A, CLIP]])
    with torch.no_grad():
        plain = model(**batch).logits
        with vtc.compress(model, method, tokens=500, video=video) as run:
            assert torch.equal(model(**batch).logits, plain)
    for image in run.reports[-1]:
        frames = image.frames if video == "frame" else 1
        assert image.asked == 500 * frames and image.patches_after == image.patches_before
        assert (
            f"asked for {500 * frames} patch tokens, there are {image.patches_before}" in image.note
        )
    with vtc.compress(model, method, tokens=500, video=video, strict=True):
        with pytest.raises(vtc.VTCError, match="tokens: got 500, but the image has"):
            model(**batch)


def test_frames_that_have_fewer_than_asked_for() -> None:
    """As many as a clip's first frames hold, but more than one holds: every frame keeps all."""
    model, batch = tiny.built("video_llava"), tiny.inputs("video_llava", [[CLIP]])
    (whole,) = call(model, batch, "uniform", retention=1.0).images
    one = whole.patches_before // whole.frames
    assert whole.frames > 1
    for tokens, left in (
        (one + 1, one),
        (one, one),
        (one - 3, one - 3),
        (whole.patches_before, one),
    ):
        (image,) = call(model, batch, "uniform", tokens=tokens, video="frame").images
        assert image.patches_after == left * whole.frames, tokens


@pytest.mark.parametrize("method", ["uniform", "pool", "random", "globalcom2", "token_correlation"])
def test_an_image_with_fewer_patches_keeps_all(method: str) -> None:
    """Beside one that is compressed; its tokens are those of the bare model, and reports say so."""
    model, batch = tiny.build("llava_next"), tiny.inputs("llava_next", [[A], [SMALL]])
    before = [image.patches_before for image in call(model, batch, method, retention=1.0)]
    few, many = sorted((count, number) for number, count in enumerate(before))
    assert few[0] < many[0]
    wanted = (few[0] + many[0]) // 2
    report = call(model, batch, method, tokens=wanted)
    after = [image.patches_after for image in report]
    assert after[few[1]] == few[0] and after[many[1]] == wanted
    assert [image.asked for image in report] == [wanted, wanted]
    said = f"asked for {wanted} patch tokens, there are {few[0]}, and all stay"
    assert report.images[few[1]].note == said and report.images[many[1]].note == ""
    assert report.notes[-1] == f"image {few[1]}: {said}"
    data = report.to_dict(details=False)
    assert data["notes"] == report.notes and data["images"][few[1]]["note"] == said
    again = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.to_dict() == report.to_dict() and again.images[few[1]].note == said
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    console.print(report.table())
    assert said in console.export_text()


def test_strict_is_an_option_like_others(monkeypatch: Any, tmp_path: Any) -> None:
    model, batch = tiny.build("llava"), tiny.inputs("llava", [[A]])
    file = tmp_path / "vtc.yaml"
    file.write_text("method: uniform\ntokens: 99\noptions: {strict: true}\n")
    from_file = vtc.CompressionConfig.from_sources(file=file, env={})
    env = {"VTC_METHOD": "uniform", "VTC_TOKENS": "99", "VTC_OPTIONS": '{"strict": true}'}
    from_env = vtc.CompressionConfig.from_sources(env=env)
    for config in (from_file, from_env):
        with vtc.compress(model, config):
            with pytest.raises(vtc.VTCError, match="tokens: got 99, but the image has 16"):
                model(**batch)
    loose = vtc.CompressionConfig.from_sources(file=file, env={}, strict=False)
    assert call(model, batch, loose).images[0].patches_after == 16
    with pytest.raises(vtc.VTCError, match="strict: got 'no', allowed are True and False"):
        vtc.create_method("uniform", tokens=99, strict="no")


def test_tiles_of_cross_attention() -> None:
    """Mllama: of every tile the same number, which is said."""
    model, batch = mllama.build(), mllama.inputs()
    with torch.no_grad():
        plain = model(**batch).logits
        for tokens in (16, 17, 1000):
            with vtc.compress(model, "uniform", tokens=tokens) as run:
                assert torch.equal(model(**batch).logits, plain)
            assert [image.patches_after for image in run.reports[-1]] == [64, 32]
            notes = " ".join(run.reports[-1].notes)
            assert "`tokens` is for each of them" in notes
            assert (f"asked for {4 * tokens} patch tokens, there are 64" in notes) == (tokens > 16)
        with vtc.compress(model, "uniform", tokens=5) as run:
            model(**batch)
        assert [image.patches_after for image in run.reports[-1]] == [20, 10]
    with vtc.compress(model, "uniform", tokens=17, strict=True):
        with pytest.raises(vtc.VTCError, match="tokens: got 17, but the image has 16"):
            model(**batch)


@pytest.mark.parametrize("options", [{"retention": 0.5}, {"tokens": 30}, {"tokens": 10**6}])
def test_what_a_grid_leaves_is_said(options: dict[str, Any]) -> None:
    """`tokenflex` cannot meet every budget: asked for and left are in the report."""
    model, batch = tiny.build("llava_next"), tiny.inputs("llava_next", [[A], [SMALL]])
    report = call(model, batch, "tokenflex", projector=tiny.projector(model), **options)
    for number, image in enumerate(report):
        wanted = options.get("tokens") or math.floor(0.5 * image.patches_before)
        assert image.asked == wanted
        assert (image.note == "") == (image.patches_after == wanted)
        if image.note:
            assert str(wanted) in image.note and str(image.patches_after) in image.note
            assert any(note.endswith(image.note) and str(number) in note for note in report.notes)


@dataclass
class Spoilt(Method):
    """Keeps the first patch of each tile or frame, and hands `change` of it on."""

    change: Callable[[CompressedTokens], CompressedTokens] = lambda out: out
    name: ClassVar[str] = "spoilt"

    def compress_batch(self, batch: ImageBatch) -> list[CompressedTokens]:
        valid = batch.tables.valid
        kept = [sum(n > 0 for n in shape.available) for shape in batch.shapes]
        return [
            self.change(o) for o in batch.keep(valid & (valid.cumsum(1) == 1), kept).apply(batch)
        ]


@pytest.mark.parametrize("family", ["mllama", "docowl", "qwen2_vl", "llava_next", "llava"])
def test_guards_hold_on_every_way_through_a_model(family: str) -> None:
    """Cross-attention, placeholders for tiles, frames of clips, crops."""
    model = matrix.model_of(family)
    inside = matrix.INSIDE.get(family)
    rows = [[CLIP, A]] if family == "qwen2_vl" else [[A]]
    batch = inside.inputs() if inside else tiny.inputs(family, rows)
    for change, message in (
        (lambda out: out.replace(features=out.features * torch.nan), "are not a number"),
        (lambda out: out.replace(anchor=out.anchor + 10**6), "anchor outside"),
        (lambda out: out.replace(tile=out.tile + 99), "tile outside"),
    ):
        with torch.no_grad(), vtc.compress(model, Spoilt(0.5, video="frame", change=change)):
            with pytest.raises(vtc.VTCError, match=message):
                model(**batch)
    with torch.no_grad(), vtc.compress(model, Spoilt(0.5, video="frame")):
        assert model(**batch).logits.isfinite().all()


def test_other_budgets_that_are_not_met_are_said() -> None:
    model, batch = tiny.build("llava"), tiny.inputs("llava", [[A]])
    (image,) = call(model, batch, "none", retention=0.5).images
    assert image.note == "asked for 8 patch tokens, 16 of 16 are left"
    (image,) = call(model, batch, "globalcom2", retention=0.5, single_tile="official").images
    assert image.note == "asked for 8 patch tokens, 16 of 16 are left"
    (image,) = call(model, batch, "token_correlation").images
    assert image.asked is None and image.note == ""
