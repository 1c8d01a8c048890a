"""Retention 1.0 changes no bit, and a removed patch leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests.hf import tiny
from tests.hf.methods import KINDS, Attended, Breaks, Early, Norms
from vtc.methods.base import Method

GREEDY = dict(max_new_tokens=6, do_sample=False)
STEPS = dict(GREEDY, output_logits=True, return_dict_in_generate=True)
IDENTITIES = [Norms(1.0), Early(1.0), Attended(1.0)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("method", IDENTITIES, ids=lambda m: m.name)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_retention_one_is_bit_equal(family: str, method: Method, positions: str, side: str) -> None:
    """Logits, greedy tokens and the logits of every step are those of the bare model."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED, side=side)
    with torch.no_grad():
        plain, steps = model(**batch).logits, model.generate(**batch, **STEPS)
        with vtc.compress(model, method, positions=positions):
            assert torch.equal(model(**batch).logits, plain)
            ours = model.generate(**batch, **STEPS)
    assert torch.equal(ours.sequences, steps.sequences)
    assert all(map(torch.equal, ours.logits, steps.logits))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_removal_leaves_nothing(family: str, kind: str) -> None:
    """After use and removal: same outputs, attributes, configs, hooks, children, state keys."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    with torch.no_grad():
        plain, tokens = model(**batch).logits, model.generate(**batch, **GREEDY)
        before = tiny.snapshot(model)
        handle = vtc.apply(model, KINDS[kind])
        assert tiny.snapshot(model) != before
        assert not torch.equal(model.generate(**batch, **GREEDY), tokens)
        assert model(**batch).logits.shape[1] < plain.shape[1]
        handle.remove()
        assert tiny.snapshot(model) == before
        assert torch.equal(model(**batch).logits, plain)
        assert torch.equal(model.generate(**batch, **GREEDY), tokens)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_first_run_of_a_model_may_be_compressed(family: str) -> None:
    """transformers hangs its recorder on the tower in the first run: it must find all layers."""
    model, twin = tiny.build(family), tiny.build(family)
    batch = tiny.inputs(family, tiny.ONE)
    with torch.no_grad():
        with vtc.compress(model, Norms(0.5)):
            model.generate(**batch, **GREEDY)
        assert torch.equal(model(**batch).logits, twin(**batch).logits)
        tower, other = model.model.vision_tower, twin.model.vision_tower
        hooks = [len(m._forward_hooks) for m in tower.modules()]
        assert hooks == [len(m._forward_hooks) for m in other.modules()]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_nothing_is_left_after_an_exception(family: str, error: BaseException) -> None:
    """A method that raises in the second image of a generate leaves a model that removal restores."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    with torch.no_grad():
        plain, before = model(**batch).logits, tiny.snapshot(model)
        with pytest.raises(type(error)), vtc.compress(model, Breaks(0.5, good=1, error=error)):
            model.generate(**batch, **GREEDY)
        assert tiny.snapshot(model) == before
        assert torch.equal(model(**batch).logits, plain)


@pytest.mark.parametrize("family", ["llava-clip", "llava-siglip", "next-clip", "next-siglip"])
@pytest.mark.parametrize("layer", [-1, -2, -3, 1, [-2, 1]])
def test_dead_layers_are_left_out_for_free(family: str, layer: int | list[int]) -> None:
    """Fewer vision layers run, features keep every bit, and the layers are back afterwards."""
    if isinstance(layer, list) and not family.startswith("llava"):
        layer = [layer[0]]
    model, batch = tiny.build(family, vision_feature_layer=layer), tiny.inputs(family, tiny.ONE)
    layers = model.model.vision_tower.encoder.layers
    calls: list[int] = []
    for index, block in enumerate(layers):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    with torch.no_grad():
        plain = model(**batch).logits
        assert calls == [0, 1, 2, 3]
        calls.clear()
        with vtc.compress(model, Norms(1.0)):
            assert torch.equal(model(**batch).logits, plain)
        wanted = [layer] if isinstance(layer, int) else layer
        assert calls == list(range(max(w if w >= 0 else 5 + w for w in wanted)))
        calls.clear()
        with vtc.compress(model, Attended(1.0, layer=-1)):
            assert torch.equal(model(**batch).logits, plain)
        assert calls == [0, 1, 2, 3], "a signal from the last layer keeps it alive"
    assert model.model.vision_tower.encoder.layers is layers


def test_dead_layers_by_vipllavas_older_name() -> None:
    """Up to the deepest of the layers that it reads, whatever its configuration calls them."""
    model, batch = tiny.build("vipllava"), tiny.inputs("vipllava", tiny.ONE)
    calls: list[int] = []
    for index, block in enumerate(model.model.vision_tower.encoder.layers):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    with torch.no_grad():
        plain = model(**batch).logits
        assert calls == [0, 1, 2, 3]
        calls.clear()
        with vtc.compress(model, Norms(1.0)):
            assert torch.equal(model(**batch).logits, plain)
    assert calls == [0, 1, 2]
