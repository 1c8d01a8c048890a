"""Every family: the language model alone as reference, bit equality, removal, training.

The fast tests take one method and a few ways to run for every family; the slow one is the whole matrix.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtc
from tests.families import by_hand, matrix, tiny, ways
from tests.families.by_hand import Output
from tests.hf.tiny import snapshot
from vtc.plugins.hf.adapters import adapter_for

CASES = [pytest.param(*case, id=case[0] + "-clips" * case[1]) for case in matrix.cases()]
ROTATED = [
    pytest.param(*case, matrix.METHODS[i % len(matrix.METHODS)], id=case[0] + "-clips" * case[1])
    for i, case in enumerate(matrix.cases())
]


def holds(family: str, video: bool, method: str, mode: str, side: str, positions: str) -> None:
    try:
        outcome = matrix.cell(family, video, method, mode, side, positions)
    except vtc.VTCError as error:
        pytest.skip(str(error))
    if outcome != "ok":
        pytest.skip(outcome)


@pytest.mark.parametrize("family,video,method", ROTATED)
def test_one_method_of_every_family(family: str, video: bool, method: str) -> None:
    """Forward under every position policy, greedy under one."""
    if method == "tokenflex":
        refused = adapter_for(matrix.model_of(family)).irreplaceable
        method = "pool" if refused or family == "llava_onevision_shrunk" else method
    for positions in matrix.POSITIONS:
        holds(family, video, method, "forward", "left", positions)
    holds(family, video, method, "greedy", "left", "original")


@pytest.mark.parametrize("number,family,video", [(n, *c) for n, c in enumerate(matrix.cases())])
def test_ways_to_call(number: int, family: str, video: bool) -> None:
    """A few ways of every family, each way with a few of them."""
    names = list(ways.WAYS)
    for name in names[number % 4 :: 4]:
        side = matrix.SIDES[number // 4 % 2] if name not in ways.ONE_SIDED else "left"
        method = "uniform" if family == tiny.UNKNOWN else matrix.WAY_METHODS[number % 3]
        try:
            matrix.way(family, video, method, name, side, matrix.POSITIONS[number % 3])
        except vtc.VTCError as error:  # an older transformers
            pytest.skip(str(error))


@pytest.mark.parametrize("family,video", CASES)
def test_retention_one_and_removal(family: str, video: bool) -> None:
    """Retention 1.0 gives the same bits, and nothing is left behind a patch."""
    try:
        outcome = matrix.identity(family, video, "greedy", "left")
    except vtc.VTCError as error:  # an older transformers
        pytest.skip(str(error))
    if outcome != "ok":
        pytest.skip(outcome)
    model, batch = matrix.model_of(family), tiny.inputs(family, tiny.rows_of(family, video))
    with torch.no_grad():
        plain = model(**batch).logits
        before = _without_deltas(snapshot(model))
        method = "uniform" if family == tiny.UNKNOWN else "globalcom2"
        with vtc.compress(model, method, retention=0.5):
            assert model(**batch).logits.shape[1] < plain.shape[1]
        assert _without_deltas(snapshot(model)) == before
        assert torch.equal(model(**batch).logits, plain)


def _without_deltas(state: dict[str, Any]) -> dict[str, Any]:
    """`rope_deltas` is where transformers itself notes the last prompt."""
    for held in state.values():
        if isinstance(held, dict):
            held.pop("rope_deltas", None)
    return state


@pytest.mark.parametrize("family,video", CASES)
def test_loss_and_gradients(family: str, video: bool) -> None:
    """Those of the model that is given the kept features by hand."""
    model = tiny.built(family)
    rows = [[tiny.CLIP]] if video else [[tiny.A]]
    batch = tiny.inputs(family, rows)
    labels = batch["input_ids"].clone()
    labels[(labels == tiny.IMAGE) | (labels == tiny.VIDEO)] = -100
    method = vtc.create_method("uniform", retention=0.5)
    short = by_hand.shorten(model, batch, method, "original")
    seen = by_hand.record(model, method, batch)

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    with vtc.compress(model, method):
        loss = model(**batch, labels=labels).loss
        ours = gradients(loss)

    kind = "video" if video else "image"
    output = by_hand.encode(model.model, kind, batch)
    packed = torch.cat([part.flatten(0, -2) for part in output.pooler_output])
    start, kept, anchors = 0, [], []
    for tokens, out in seen:
        kept.append(packed[start : start + len(tokens.layout)][out.anchor])
        anchors.append(out.anchor + start)
        start += len(tokens.layout)
    deep = [torch.cat(list(level)) for level in getattr(output, "deepstack_features", [])]
    arguments: dict[str, Any] = dict(
        position_ids=short.positions + int(family == "paligemma"),
        attention_mask=torch.ones_like(short.ids),
        labels=labels[:, short.columns],
        mm_encoder_outputs={
            kind: Output(
                pooler_output=torch.cat(kept)[None] if _wants_tensor(output) else kept,
                deepstack_features=[[level[torch.cat(anchors)]] for level in deep] or None,
            )
        },
        **short.types,
    )
    expected = model(input_ids=short.ids, **arguments).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    theirs = gradients(expected)
    assert ours.keys() == theirs.keys()
    assert any(n.startswith(("model.vis", "model.image_tower", "model.video_tower")) for n in ours)
    for name, gradient in theirs.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(ours[name], gradient, atol=1e-4 * scale + 1e-7, rtol=1e-3)


def _wants_tensor(output: Any) -> bool:
    return isinstance(output.pooler_output, torch.Tensor)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", *matrix.METHODS])
@pytest.mark.parametrize("family,video", CASES)
def test_whole_matrix(family: str, video: bool, method: str) -> None:
    """All cells of a family and a method."""
    modes = (*matrix.MODES, *ways.WAYS)
    cells = matrix.run_case((family, video, method, modes, matrix.SIDES))
    assert not {key: text for key, text in cells.items() if text.startswith("FAILED")}
