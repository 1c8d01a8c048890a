"""Loss and gradients under compression are those of the short prompt."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vtc
from tests import asking
from tests.families.tiny import projector
from tests.hf import by_hand, tiny
from tests.hf.methods import KINDS
from tests.methods.images import METHODS

POLICIES = pytest.mark.parametrize("positions", ["original", "contiguous"])


def labelled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with labels on the text; nothing on its first token, images and padding."""
    ids = batch["input_ids"]
    off = (ids == tiny.IMAGE) | (ids == tiny.BOS) | (batch["attention_mask"] == 0)
    return {**batch, "labels": ids.masked_fill(off, -100)}


def loss_by_hand(
    model: nn.Module, batch: dict[str, Tensor], kind: str, positions: str
) -> tuple[Tensor, int]:
    """Mean cross-entropy over the labelled tokens, row by row, the language model alone."""
    total, count = torch.zeros(()), 0
    rows = by_hand.rows(model, batch, KINDS[kind], positions)
    for i, row in enumerate(rows):
        labels = batch["labels"][i][row.columns]
        scores = by_hand.logits(model, row)
        total = total + nn.functional.cross_entropy(scores[:-1], labels[1:], reduction="sum")
        count += int((labels[1:] != -100).sum())
    return total / count, count


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by parameter name; clears them."""
    out = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return out


def assert_gradients(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Equal up to 1e-5 of the largest gradient of each parameter; some reach the vision tower."""
    assert sum(".vision_tower." in name and bool(got[name].any()) for name in got) >= 16
    for name in got.keys() | want.keys():
        # a newline that is dropped has no gradient or zeros
        ours, theirs = (g.get(name, torch.zeros(())) for g in (got, want))
        # a key's bias has no gradient in exact arithmetic: rounding is all there is
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-6, name


@pytest.mark.parametrize("side", ["left", "right"])
@POLICIES
@pytest.mark.parametrize("kind", ["norms", "early", "pairs", "attended"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_loss_and_gradients(family: str, kind: str, positions: str, side: str) -> None:
    """Same loss and same gradient of every parameter, the vision tower's included."""
    model = tiny.build(family).train().double()
    batch = labelled(tiny.inputs(family, tiny.MIXED, side=side, dtype=torch.float64))
    with vtc.compress(model, KINDS[kind], positions=positions):
        loss = model(**batch).loss
        loss.backward()
    ours = gradients(model)
    expected, _ = loss_by_hand(model, batch, kind, positions)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected.double(), atol=0, rtol=1e-5)
    assert_gradients(ours, gradients(model))


@pytest.mark.parametrize("family", ["llava-clip", "next-siglip", "vipllava"])
def test_retention_one_keeps_loss_and_gradients(family: str) -> None:
    """The identity changes no bit of the loss and no gradient."""
    model = tiny.build(family).train()
    batch = labelled(tiny.inputs(family, tiny.MIXED, side="right"))
    plain = model(**batch).loss
    plain.backward()
    before = gradients(model)
    with vtc.compress(model, KINDS["norms"].__class__(1.0)):
        loss = model(**batch).loss
        loss.backward()
    assert torch.equal(loss, plain)
    after = gradients(model)
    assert after.keys() <= before.keys()
    for name, value in before.items():
        if name in after:
            assert torch.equal(after[name], value), name
        else:  # a vision layer behind the one that is read is left out
            assert not value.any(), name


@pytest.mark.parametrize("kind", ["norms", "attended"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llava-clip", "next-siglip"])
def test_gradient_checkpointing(family: str, reentrant: bool, kind: str) -> None:
    """Layers that run again in the backward pass give the same loss and gradients."""
    model = tiny.build(family).train()
    batch = labelled(tiny.inputs(family, tiny.MIXED, side="right"))
    with vtc.compress(model, KINDS[kind]):
        plain = model(**batch).loss
        plain.backward()
        want = gradients(model)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        loss = model(**batch).loss
        loss.backward()
    torch.testing.assert_close(loss, plain, atol=0, rtol=1e-6)
    got = gradients(model)
    if reentrant:  # needs inputs that require gradients, which pixels do not
        got, want = ({n: g for n, g in d.items() if "vision" not in n} for d in (got, want))
        assert got.keys() == want.keys() and len(got) > 20
        for name in want:
            torch.testing.assert_close(got[name], want[name], atol=1e-6, rtol=1e-4)
    else:
        assert_gradients(got, want)


def test_a_training_step_learns() -> None:
    """Ten steps of SGD under compression lower the loss, dropout on."""
    model = tiny.build("next-clip", attention="eager").train()
    model.config.vision_config.attention_dropout = 0.1
    batch = labelled(tiny.inputs("next-clip", tiny.MIXED, side="right"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    with vtc.compress(model, KINDS["norms"]):
        losses = []
        for _ in range(10):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]


def test_labels_may_come_without_a_mask() -> None:
    """One unpadded row with labels and no mask: the loss is that of the short prompt."""
    model = tiny.build("next-clip").train()
    batch = labelled(tiny.inputs("next-clip", tiny.ONE))
    expected, _ = loss_by_hand(model, batch, "norms", "original")
    del batch["attention_mask"]
    with vtc.compress(model, KINDS["norms"]):
        torch.testing.assert_close(model(**batch).loss, expected, atol=0, rtol=1e-5)


class Words:
    """A tokenizer whose text has two tokens."""

    def decode(self, ids: Any, **_: Any) -> str:
        return "what?"

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [5, 6]}


REPORTED = [
    *((method, {}) for method in KINDS.values()),
    *((name, asking.options(name, 32)) for name in ("none", *METHODS)),
    ("recoverable", {"text_score": "similarity", "text_k": 3}),
]


@pytest.mark.parametrize("method, options", REPORTED)
def test_reports_hold_no_graph(method: Any, options: dict[str, Any]) -> None:
    """What a training step leaves behind can be copied, so it keeps no activations alive."""
    if isinstance(method, str):
        options = {"retention": 0.5, **options}
    model = tiny.build("llava-clip").train()
    if method == "tokenflex":
        options["projector"] = projector(model)
    batch = labelled(tiny.inputs("llava-clip", tiny.MIXED, side="right"))
    with vtc.compress(model, method, processor=Words(), **options):
        model(**batch).loss.backward()
        model.zero_grad()
        assert len(copy.deepcopy(model)._vtc.patch.reports) == 1
