"""Vision layers that remember: the same bits as layers that run, in every family."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

import vtc
from tests.families import tiny
from vtc.plugins.hf.adapters import adapter_for
from vtc.plugins.hf.remember import remembering

#: nothing, no signal, attention of one layer, of two, keys and features before the projector
METHODS = (None, "uniform", "globalcom2", "hiprune", "token_correlation", "prumerge")


def logits(model: Any, batch: dict[str, Any], method: str | None) -> torch.Tensor | str:
    """Of a forward pass; what is said where the family cannot have the method."""
    try:
        block: Any = (
            contextlib.nullcontext()
            if method is None
            else vtc.compress(model, method, retention=0.4)
        )
        with block, torch.inference_mode():
            return model(**batch).logits
    except vtc.VTCError as error:
        return str(error)


def counted(model: Any) -> list[int]:
    """How often each vision layer runs from now on."""
    runs = [0] * len(adapter_for(model).layers(model.base_model))

    def around(forward: Any, index: int) -> Any:
        def count(*args: Any, **kwargs: Any) -> Any:
            runs[index] += 1
            return forward(*args, **kwargs)

        return count

    for index, layer in enumerate(adapter_for(model).layers(model.base_model)):
        layer.forward = around(layer.forward, index)
    return runs


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_same_bits_for_every_method_and_batch(name: str) -> None:
    model = tiny.built(name)
    batches = [tiny.inputs(name, tiny.rows_of(name), seed) for seed in (0, 1)]
    if "video" in tiny.FAMILIES[name].kinds:
        batches.append(tiny.inputs(name, tiny.rows_of(name, video=True)))
    order = [(batch, method) for batch in batches for method in METHODS]
    order += [(batch, method) for method in METHODS for batch in batches]
    expected = [logits(model, *case) for case in order]
    with remembering(model) as layers:
        found = [logits(model, *case) for case in order]
    assert layers and not any("forward" in vars(each.layer) for each in layers)
    for one, two in zip(expected, found, strict=True):
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def test_a_layer_runs_once_for_a_batch() -> None:
    """One that a method reads runs once more, the others never again."""
    model, batch = tiny.built("llava_next"), tiny.inputs("llava_next", tiny.MIXED)
    runs = counted(model)
    with remembering(model):
        logits(model, batch, None)
        assert runs == [1] * len(runs)
        for method in METHODS[1:]:
            logits(model, batch, method)
        assert set(runs) == {1, 2}
        after = list(runs)
        for method in METHODS:
            logits(model, batch, method)
        assert runs == after
        logits(model, tiny.inputs("llava_next", tiny.MIXED, seed=1), None)
        assert runs == [count + 1 for count in after]


def test_gradients_run_as_always() -> None:
    model, batch = tiny.built("llava_next"), tiny.inputs("llava_next", tiny.ONE)
    runs = counted(model)
    with remembering(model):
        for turn in (1, 2):
            model(**batch, labels=batch["input_ids"]).loss.backward()
            assert runs == [turn] * len(runs)


def test_what_was_forgotten_runs_again() -> None:
    model, batch = tiny.built("llava_next"), tiny.inputs("llava_next", tiny.ONE)
    runs = counted(model)
    with remembering(model) as layers:
        logits(model, batch, None)
        for layer in layers:
            layer.forget()
        logits(model, batch, None)
    assert runs == [2] * len(runs)
