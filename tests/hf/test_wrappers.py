"""PEFT, accelerate and torch.compile, before or after the patch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import vtc
from tests.hf import by_hand, tiny
from tests.hf.methods import Attended, Norms

NEW = 4
GREEDY = dict(max_new_tokens=NEW, do_sample=False)
ORDER = pytest.mark.parametrize("patch_first", [True, False])


def tokens(model: nn.Module, batch: dict[str, Any]) -> list[list[int]]:
    """What the model generates."""
    return model.generate(**batch, **GREEDY)[:, -NEW:].tolist()


def expected(model: nn.Module, batch: dict[str, Any]) -> list[list[int]]:
    """The reference's tokens under `Attended(0.5)`."""
    rows = by_hand.rows(model, batch, Attended(0.5))
    return [by_hand.greedy(model, row, NEW)[0] for row in rows]


@ORDER
@pytest.mark.parametrize("family", ["llava-clip", "next-siglip"])
def test_lora(family: str, patch_first: bool) -> None:
    """Adapters on language model and tower take effect, train, and survive the removal."""
    peft = pytest.importorskip("peft", reason="LoRA needs peft")
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    if patch_first:
        vtc.apply(model, Attended(0.5))
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, settings)
    if not patch_first:
        vtc.apply(wrapped, Attended(0.5))
    out = tokens(wrapped, batch)
    wrapped.train()
    wrapped(**batch, labels=batch["input_ids"]).loss.backward()
    grads = [p.grad for n, p in wrapped.named_parameters() if "lora_B" in n and p.grad is not None]
    assert len(grads) >= 8 and any(g.any() for g in grads)
    wrapped.eval()
    vtc.remove(wrapped)
    assert "_vtc" not in vars(model) and out == expected(model, batch)


@ORDER
@pytest.mark.parametrize("way", ["dispatch", "offload"])
@pytest.mark.parametrize("family", ["llava-clip", "next-clip"])
def test_accelerate(family: str, way: str, patch_first: bool) -> None:
    """accelerate's hooks and ours live side by side, whichever came first."""
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    want = expected(model, batch)
    if patch_first:
        vtc.apply(model, Attended(0.5))
    if way == "dispatch":
        accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    else:
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    if not patch_first:
        vtc.apply(model, Attended(0.5))
    with torch.no_grad():
        assert tokens(model, batch) == want
        logits = model(**batch).logits
        assert hasattr(model, "_hf_hook")
        vtc.remove(model)
        assert hasattr(model, "_hf_hook") and "_vtc" not in vars(model)
        assert model(**batch).logits.shape[1] > logits.shape[1]


@ORDER
def test_compiled_language_model(patch_first: bool) -> None:
    """A compiled language model gives the same logits, patched before or after."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.MIXED)
    with torch.no_grad():
        with vtc.compress(model, Norms(0.5)):
            want = model(**batch, use_cache=False).logits
        if patch_first:
            vtc.apply(model, Norms(0.5))
        model.model.language_model.compile(backend="aot_eager", dynamic=True)
        if not patch_first:
            vtc.apply(model, Norms(0.5))
        for _ in range(2):
            torch.testing.assert_close(
                model(**batch, use_cache=False).logits, want, atol=1e-4, rtol=1e-4
            )
        vtc.remove(model)
        assert model(**batch, use_cache=False).logits.shape[1] > want.shape[1]
