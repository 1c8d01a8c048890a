"""Data types and attention implementations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vtc
from tests.device import DEVICE
from tests.hf import by_hand, tiny
from tests.hf.methods import KINDS, Attended, Norms

NEW = 5
GREEDY = dict(max_new_tokens=NEW, do_sample=False)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@DTYPES
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_identity_in_every_precision(family: str, dtype: torch.dtype) -> None:
    """Retention 1.0 is bit-equal in float32, bfloat16 and float16."""
    model = tiny.build(family).to(dtype)
    batch = tiny.inputs(family, tiny.MIXED, dtype=dtype)
    with torch.no_grad():
        logits, tokens = model(**batch).logits, model.generate(**batch, **GREEDY)
        with vtc.compress(model, Attended(1.0)):
            assert torch.equal(model(**batch).logits, logits)
            assert torch.equal(model.generate(**batch, **GREEDY), tokens)
    assert logits.dtype == dtype


@DTYPES
@pytest.mark.parametrize("kind", ["norms", "early", "pairs", "attended"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_compressed_in_every_precision(family: str, kind: str, dtype: torch.dtype) -> None:
    """Logits stay in the model's type and agree with the language model alone."""
    model = tiny.build(family).to(dtype)
    batch = tiny.inputs(family, tiny.ONE, dtype=dtype)
    with torch.no_grad():
        with vtc.compress(model, KINDS[kind]):
            logits = model(**batch).logits
            out = model.generate(**batch, **GREEDY)
        (row,) = by_hand.rows(model, batch, KINDS[kind])
        expected = by_hand.logits(model, row)
    assert logits.dtype == dtype and logits.isfinite().all()
    assert out.shape[1] == batch["input_ids"].shape[1] + NEW
    error = (logits[0] - expected).float().norm() / expected.float().norm()
    assert error < {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}[dtype]


@pytest.mark.parametrize("kind", ["attended", "norms"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_eager_and_sdpa_agree(family: str, kind: str) -> None:
    """Both attention implementations give the reference's tokens."""
    batch = tiny.inputs(family, tiny.MIXED)
    for attention in ("sdpa", "eager"):
        model = tiny.build(family, attention=attention)
        with vtc.compress(model, KINDS[kind]):
            out = model.generate(**batch, **GREEDY)
        assert model.config._attn_implementation == attention
        for row, got in zip(by_hand.rows(model, batch, KINDS[kind]), out, strict=True):
            assert got[-NEW:].tolist() == by_hand.greedy(model, row, NEW)[0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_tower_keeps_its_attention_function(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probed or not, every layer calls sdpa once with its own config; nothing asks for weights."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.ONE)
    tower = model.model.vision_tower
    config = tower.encoder.layers[0].self_attn.config
    calls: list[Any] = []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module: Any, *args: Any, **kwargs: Any) -> Any:
        out = sdpa(module, *args, **kwargs)
        assert not kwargs.get("output_attentions") and out[1] is None
        calls.append((module, module.config))
        return out

    with torch.no_grad():
        model(**batch)
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", spy)
        with vtc.compress(model, Attended(0.5, layer=-1)):
            model(**batch)
    # a probed layer hands a shallow copy of its module on, which shares the projections
    layers = [block.self_attn.q_proj for block in tower.encoder.layers]
    seen = [(module.q_proj, own) for module, own in calls if module.q_proj in layers]
    assert [layer for layer, _ in seen] == layers
    assert all(own is config for _, own in seen)


def test_an_attention_function_of_the_users_own() -> None:
    """A function registered under a new name keeps running in a probed layer."""
    ran: list[Any] = []

    def mine(module: Any, *args: Any, **kwargs: Any) -> Any:
        ran.append(module.q_proj)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)

    AttentionInterface.register("flash_mine", mine)
    model, batch = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.ONE)
    with torch.no_grad(), vtc.compress(model, Attended(0.5)):
        expected = model(**batch).logits
    tower = model.model.vision_tower
    tower.config._attn_implementation_internal = "flash_mine"
    with torch.no_grad(), vtc.compress(model, Attended(0.5)):
        probed = tower.encoder.layers[2].self_attn
        assert "flash" in probed.config._attn_implementation, "flash layouts are chosen by name"
        torch.testing.assert_close(model(**batch).logits, expected)
    assert probed.q_proj in ran


@pytest.mark.parametrize("order", ["before", "while-applied"])
def test_changing_the_implementation(order: str) -> None:
    """`set_attn_implementation` works beside a patch, and removal still restores the config."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.ONE)
    config = model.model.vision_tower.encoder.layers[2].self_attn.config
    with torch.no_grad():
        if order == "before":
            model.set_attn_implementation("eager")
        with vtc.compress(model, Attended(0.5)):
            model.set_attn_implementation("eager")
            eager = model(**batch).logits
            model.set_attn_implementation("sdpa")
            torch.testing.assert_close(model(**batch).logits, eager, atol=1e-4, rtol=1e-4)
    assert model.model.vision_tower.encoder.layers[2].self_attn.config is config
    assert config._attn_implementation == "sdpa"


def test_autocast() -> None:
    """Under autocast features and language model may differ in type; the call still works."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.MIXED)
    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
        plain = model(**batch).logits
        with vtc.compress(model, Attended(1.0)):
            assert torch.equal(model(**batch).logits, plain)
        with vtc.compress(model, Norms(0.5)):
            assert model(**batch).logits.isfinite().all()
            model.generate(**batch, **GREEDY)
