"""Cells of the matrix for methods inside the language model, see `tests.families.matrix`.

The reference is the bare model whose layers hide what the method drops of each row alone. A method that
changes what it keeps cannot be told by masks: its rows are compared with themselves alone.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

import vtc
from tests.families import tiny
from tests.layers import models
from tests.layers.masked import gone_by_hand, hiding
from vtc.registry import compared_methods, method_class

METHODS = compared_methods(where="layers")
#: those that write into what they keep
MERGES = {"sparsevlm"}


@functools.lru_cache(maxsize=2)
def model_of(name: str) -> Any:
    return models.build(name)


def run(model: Any, batch: dict[str, Any], ask: dict[str, Any] | None) -> Tensor:
    """Logits of a forward where `ask` is None, else the new tokens."""
    torch.manual_seed(0)
    if ask is None:
        return model(**batch).logits
    return model.generate(**batch, **ask)[:, batch["input_ids"].shape[1] :]


@functools.lru_cache(maxsize=128)
def columns(family: str, video: bool, method: str, row: int, side: str) -> dict[int, list[int]]:
    """Of a row alone, layer -> columns that the cut in front of it left.

    Args:
        side: of the row's padding, "" for none. A plain forward counts padding on the left as positions,
            which DART's norms of rotated keys depend on.
    """
    rows, model = tiny.rows_of(family, video), model_of(family)
    batch = tiny.alone(family, rows, row, side=side or "left", padded=bool(side))
    ids = batch["input_ids"][0][batch["attention_mask"][0].bool()]
    visual = ((ids == tiny.IMAGE) | (ids == tiny.VIDEO)).nonzero().squeeze(1).tolist()
    made = vtc.create_method(method)
    with torch.no_grad(), vtc.compress(model, made) as handle:
        model(**batch)
    left: dict[int, set[int]] = {cut: set() for cut in made.cuts(models.DEPTH)}
    start = 0
    for image in (image for report in handle.reports for image in report.images):
        here = mine = visual[start : start + image.tokens_before]
        start += image.tokens_before
        if made.counts(len(mine), models.DEPTH)[-1] < len(mine):
            assert image.inside, "nothing was dropped"
        cuts = {cut.layer: [mine[i] for i in cut.left.tolist()] for cut in image.inside}
        for layer, kept in left.items():  # a cut that drops nothing of an image is none of it
            here = cuts.get(layer, here)
            kept |= set(here)
    assert start == len(visual)
    words = set(range(len(ids))) - set(visual)
    return {layer: sorted(words | kept) for layer, kept in left.items()}


def cell(
    family: str, video: bool, method: str, mode: str, side: str, ask: dict[str, Any] | None
) -> str:
    """`"ok"`; raises `AssertionError` where the model differs from the reference."""
    reason = upstream(family, video, mode, side)
    if reason:
        return f"upstream: {reason}"
    rows, model = tiny.rows_of(family, video), model_of(family)
    if mode == "assisted":  # one prompt at a time
        rows = rows[:1]
    batch = tiny.inputs(family, rows, side=side)
    shown = batch["attention_mask"].bool()
    if method_class(method).reads_question and mode == "chunked prefill":
        with torch.no_grad(), vtc.compress(model, method):
            run(model, batch, ask)  # refused
    if method in MERGES:
        return _alone(family, video, method, batch, mode, side, ask)
    padded = side if mode == "forward" else ""
    of = [columns(family, video, method, row, padded) for row in range(len(rows))]
    with torch.no_grad():
        with hiding(model, gone_by_hand(of, shown, models.DEPTH)):
            want = run(model, batch, ask)
        with vtc.compress(model, method):
            got = run(model, batch, ask)
    if ask is not None:
        assert torch.equal(got, want), f"{got.tolist()}, by masks {want.tolist()}"
        return "ok"
    for row, left in enumerate(of):  # what is dropped has the logits of where it was dropped
        places = shown[row].nonzero().squeeze(1)[left[max(left)]]
        torch.testing.assert_close(got[row, places], want[row, places], atol=2e-3, rtol=1e-3)
    return "ok"


@functools.cache
def upstream(family: str, video: bool, mode: str, side: str) -> str:
    """Why the rows of a padded batch are not those rows alone with the bare model; empty where they
    are."""
    rows, model = tiny.rows_of(family, video), model_of(family)
    if mode == "forward" or side == "left":
        return ""
    ask: dict[str, Any] = dict(max_new_tokens=1, do_sample=False)
    with torch.no_grad():
        got = run(model, tiny.inputs(family, rows, side=side), ask)
        for row in range(len(rows)):
            if not torch.equal(got[row], run(model, tiny.alone(family, rows, row), ask)[0]):
                return "a prompt padded on the right goes on behind its padding"
    return ""


def _alone(
    family: str,
    video: bool,
    method: str,
    batch: dict[str, Any],
    mode: str,
    side: str,
    ask: dict[str, Any] | None,
) -> str:
    rows, model = tiny.rows_of(family, video), model_of(family)
    with torch.no_grad(), vtc.compress(model, method):
        if mode != "sampled":
            got = run(model, batch, ask)
        for row in range(len(batch["input_ids"])):
            one = tiny.alone(family, rows, row)
            want = run(model, one, ask)
            if mode == "sampled":  # one random stream a row
                got = run(model, tiny.alone(family, rows, row, side=side, padded=True), ask)
                assert torch.equal(got, want), f"row {row}"
            elif ask is None:
                mine = got[row, batch["attention_mask"][row].bool()]
                torch.testing.assert_close(mine, want[0], atol=2e-3, rtol=1e-3)
            else:
                assert torch.equal(got[row], want[0]), f"row {row}"
    return "ok"
