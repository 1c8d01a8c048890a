"""Loss and gradients with cuts inside the language model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vtc
from tests.families import tiny
from tests.layers import models
from tests.layers.hand import Hand
from tests.layers.masked import Gone, gone_by_hand, hiding
from tests.layers.methods import DropAll, Last, Merge, Steps

ANSWER = 3
ROWS: tiny.Rows = [[tiny.A], [], [tiny.B, tiny.C]]
NAMES = ("llava", "qwen2_5_vl", "gemma3", "qwen3_vl")


def labelled(name: str, which: str) -> dict[str, Tensor]:
    """A batch padded on the right, with labels on the last words or on all text."""
    batch = tiny.inputs(models.family_of(name), ROWS, side="right")
    ids, shown = batch["input_ids"], batch["attention_mask"].bool()
    labels = ids.masked_fill(~shown | (ids == tiny.IMAGE), -100)
    if which == "answers":
        for row, length in enumerate(shown.sum(1).tolist()):
            labels[row, : length - ANSWER] = -100
    return {**batch, "labels": labels}


def hands(model: nn.Module, name: str, method: Any, asking: list[int]) -> list[Hand]:
    family = models.family_of(name)
    return [
        Hand(model, name, tiny.alone(family, ROWS, i, side="right"), ROWS[i], method, asking)
        for i in range(len(ROWS))
    ]


def gone(model: nn.Module, name: str, method: Any, batch: dict[str, Tensor]) -> Gone:
    columns = [hand.columns for hand in hands(model, name, method, [-1 - ANSWER])]
    return gone_by_hand(columns, batch["attention_mask"].bool(), models.DEPTH)


def backward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), grads


def same(got: dict[str, Tensor], want: dict[str, Tensor], name: str) -> None:
    assert sum(bool(grad.any()) for key, grad in got.items() if "vision" in key or "visual" in key)
    for key in got.keys() | want.keys():
        ours, theirs = (grads.get(key, torch.zeros(())) for grads in (got, want))
        # a key's bias has no gradient in exact arithmetic: rounding is all there is
        assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max() + 2e-6, key


@pytest.mark.parametrize("method", [Last(layer=1), Steps()], ids=["last", "steps"])
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients(name: str, method: Any) -> None:
    model, batch = models.build(name), labelled(name, "answers")
    with hiding(model, gone(model, name, method, batch)):
        loss, want = backward(model, batch)
    with vtc.compress(model, method) as run:
        ours, got = backward(model, batch)
    assert run.reports[-1].cut_inside
    assert abs(float(ours - loss)) < 1e-5 * max(1.0, float(loss))
    same(got, want, name)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_labels_on_all_text_are_those_of_the_short_rows(name: str) -> None:
    model, batch = models.build(name), labelled(name, "text")
    total, count = 0.0, 0
    for row, hand in enumerate(hands(model, name, DropAll(layer=2), [-1])):
        with torch.no_grad():
            scores = hand.logits(hand.prompt)
        labels = batch["labels"][row][batch["attention_mask"][row].bool()][hand.left]
        total += float(nn.functional.cross_entropy(scores[:-1], labels[1:], reduction="sum"))
        count += int((labels[1:] != -100).sum())
    with torch.no_grad(), vtc.compress(model, DropAll(layer=2)):
        loss = model(**batch).loss
    assert abs(float(loss) - total / count) < 1e-5 * total / count


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", [Last(), Steps(), Merge()], ids=["last", "steps", "merge"])
@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_checkpointing(name: str, method: Any, reentrant: bool) -> None:
    if name == "gemma3" and isinstance(method, Merge):
        pytest.skip("its tile is smaller than the method's grid")
    model, batch = models.build(name), labelled(name, "answers")
    with vtc.compress(model, method):
        loss, want = backward(model, batch)
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        again, got = backward(model, batch)
    assert abs(float(again - loss)) < 1e-6
    same(got, want, name)


def test_a_row_without_answers_asks_nothing() -> None:
    model, batch = models.build("llava"), labelled("llava", "answers")
    batch["labels"][2] = -100
    seen: list[Tensor] = []

    class Notes(Last):
        def choose(self, view: Any) -> Any:
            seen.append(view.seen.asking)
            return super().choose(view)

    with torch.no_grad(), vtc.compress(model, Notes()):
        model(**batch)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert seen[0][:, 0].tolist() == [lengths[0] - ANSWER - 1, lengths[1] - ANSWER - 1, -1]
