"""Every method of vtc inside the language model, on models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtc
from tests.families import tiny
from tests.layers import models
from tests.layers.hand import sizes
from vtc.functional.layer_counts import average_retention
from vtc.methods.layer_method import LayerMethod
from vtc.registry import compared_methods

INSIDE = compared_methods(where="layers")
FAMILIES = ["llava", "qwen2_5_vl", "gemma3_short", "llava_next"]
STEPS = 4
#: what leaves a number of tokens that hangs on the picture
FREE = {"feather"}


def make(name: str, **options: Any) -> LayerMethod:
    method = vtc.create_method(name, **options)
    assert isinstance(method, LayerMethod)
    return method


def greedy(model: Any, batch: Any) -> Any:
    return model.generate(
        **batch,
        max_new_tokens=STEPS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("retention", [None, 0.7])
def test_a_ragged_batch_is_its_rows(name: str, family: str, retention: float | None) -> None:
    """Logits, tokens and counts: those of the method, and those of each row alone."""
    model, method = models.build(family), make(name, retention=retention)
    of = models.family_of(family)
    batch = tiny.inputs(of, tiny.MIXED)
    cuts = method.cuts(models.DEPTH)
    with torch.no_grad(), vtc.compress(model, method) as run:
        out = greedy(model, batch)
        for index, row in enumerate(tiny.MIXED):
            mine = [image for image in run.reports[0].images if image.sample == index]
            for image, tokens in zip(mine, sizes(of, row), strict=True):
                counts = method.counts(tokens, models.DEPTH)
                if name not in FREE or retention is not None:
                    # a cut at which nothing is dropped is none
                    assert set(image.cuts) <= set(zip(cuts, counts, strict=True))
                    assert image.kv_retention == pytest.approx(
                        average_retention(tokens, cuts, counts, models.DEPTH)
                    )
            alone = greedy(model, tiny.alone(of, tiny.MIXED, index))
            assert alone.sequences[0, -STEPS:].tolist() == out.sequences[index, -STEPS:].tolist()
            for step in range(STEPS):
                torch.testing.assert_close(
                    alone.logits[step][0], out.logits[step][index], atol=5e-4, rtol=0
                )


@pytest.mark.parametrize("name", INSIDE)
def test_whole_and_removed_are_bit_equal(name: str) -> None:
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED)
    with torch.no_grad():
        before = model(**batch).logits
        with vtc.compress(model, name, retention=1.0):
            whole = model(**batch).logits
        with vtc.compress(model, name):
            cut = model(**batch).logits
        after = model(**batch).logits
    assert torch.equal(before, whole) and torch.equal(before, after)
    assert not torch.equal(before, cut)


@pytest.mark.parametrize("name", INSIDE)
def test_behind_a_method_in_front_of_the_language_model(name: str) -> None:
    """Averages multiply: the share in front of the language model, times that inside it."""
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED)
    with (
        torch.no_grad(),
        vtc.compress(model, [vtc.create_method("uniform", tokens=6), name]) as run,
    ):
        out = model.generate(**batch, max_new_tokens=2, do_sample=False)
        assert out.shape[1] == batch["input_ids"].shape[1] + 2
        method = make(name)
        for image in run.reports[0].images:
            counts = method.counts(6, models.DEPTH)
            if name not in FREE:
                share = average_retention(6, method.cuts(models.DEPTH), counts, models.DEPTH)
                assert image.average_retention == pytest.approx(share * 6 / image.patches_before)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model = models.build("llava").to(dtype)
    batch = tiny.inputs("llava", tiny.MIXED)
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    with torch.no_grad(), vtc.compress(model, name):
        assert bool(model(**batch).logits.isfinite().all())
