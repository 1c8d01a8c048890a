"""A batch cut inside the language model is, row by row, its layers called by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtc
from tests.families import tiny
from tests.layers import models
from tests.layers.hand import Hand
from tests.layers.methods import DropAll, Last, Merge, Steps

STEPS = 6
METHODS: dict[str, Any] = {
    "last in front of 1": Last(layer=1),
    "last in front of 2": Last(layer=2, share=0.25),
    "last in front of 4": Last(layer=4),
    "steps": Steps(),
    "drop all": DropAll(),
}
#: one of each kind that is built differently; the others are slow
KINDS = ("llava", "llava_next", "qwen3_vl", "internvl", "idefics3", "paligemma", *models.OTHERS)
FAMILIES = [
    name if name in KINDS else pytest.param(name, marks=pytest.mark.slow)
    for name in (*tiny.FAMILIES, *models.OTHERS)
    if name != tiny.UNKNOWN
]


def check(name: str, method: Any, attention: str = "sdpa", rows: tiny.Rows = tiny.MIXED) -> None:
    """Tokens and logits of a padded batch, and what its report says, against each row by hand."""
    model = models.build(name, attention)
    family = models.family_of(name)
    batch = tiny.inputs(family, rows)
    with torch.no_grad(), vtc.compress(model, method) as run:
        out = model.generate(
            **batch,
            max_new_tokens=STEPS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logits = model(**batch).logits
    reports = run.reports[0].images
    found = torch.stack(out.logits, 1)
    for index, row in enumerate(rows):
        alone = tiny.alone(family, rows, index)
        hand = Hand(model, name, alone, row, method)
        tokens, want = hand.greedy(STEPS)
        assert out.sequences[index, -STEPS:].tolist() == tokens
        assert torch.allclose(found[index], want, atol=5e-4, rtol=0)
        shown = batch["attention_mask"][index].nonzero().squeeze(1)[hand.left]
        if family not in ("paligemma",):  # counts positions otherwise in a plain forward
            places = logits[index, shown]
            assert torch.allclose(places, hand.logits(hand.prompt), atol=5e-4, rtol=0)
        mine = [report for report in reports if report.sample == index]
        assert len(mine) == len(row)
        for cut, layer in enumerate(method.cuts(models.DEPTH)):
            left = hand._runs(hand.columns[layer])
            assert [report.cuts[cut] for report in mine] == [(layer, len(run)) for run in left]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3_short"])
def test_rows_of_a_batch(name: str, method: str) -> None:
    check(name, METHODS[method])


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    check(name, Steps())


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_eager(name: str) -> None:
    check(name, Last(), "eager")


def test_merged_tokens() -> None:
    check("llava", Merge())
