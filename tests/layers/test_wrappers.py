"""PEFT, accelerate and torch.compile around a model that is cut inside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import StaticCache

import vtc
from tests.families import tiny
from tests.families.ways import cache_name
from tests.layers import models
from tests.layers.methods import Last, Steps

ORDER = pytest.mark.parametrize("patch_first", [True, False], ids=["patch first", "patch last"])
GREEDY = dict(max_new_tokens=5, do_sample=False)


@ORDER
def test_lora(patch_first: bool) -> None:
    """What adapters do counts for the choice too: the same as when they are merged into the weights."""
    peft = pytest.importorskip("peft", reason="LoRA needs peft")
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED)
    if patch_first:
        vtc.apply(model, Last())
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, settings).eval()
    if not patch_first:
        vtc.apply(wrapped, Last())
    with torch.no_grad():
        tokens, logits = wrapped.generate(**batch, **GREEDY), wrapped(**batch).logits
        bare = copy.deepcopy(wrapped)
        vtc.remove(bare)
        merged = bare.merge_and_unload()
        with vtc.compress(merged, Last()):
            assert torch.equal(merged.generate(**batch, **GREEDY), tokens)
            assert torch.allclose(merged(**batch).logits, logits, atol=1e-3)
    wrapped.train()
    wrapped(**batch, labels=batch["input_ids"]).loss.backward()
    grads = [p.grad for n, p in wrapped.named_parameters() if "lora_B" in n and p.grad is not None]
    assert len(grads) >= 8 and any(grad.any() for grad in grads)
    vtc.remove(wrapped)
    assert "_vtc" not in vars(model)


@ORDER
@pytest.mark.parametrize("way", ["dispatch", "offload"])
def test_accelerate(way: str, patch_first: bool) -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED)
    with torch.no_grad(), vtc.compress(model, Steps()):
        want = model.generate(**batch, **GREEDY)
    if patch_first:
        vtc.apply(model, Steps())
    if way == "dispatch":
        accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    else:
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    if not patch_first:
        vtc.apply(model, Steps())
    with torch.no_grad():
        assert torch.equal(model.generate(**batch, **GREEDY), want)
        vtc.remove(model)
        assert not torch.equal(model.generate(**batch, **GREEDY), want)


@ORDER
@pytest.mark.parametrize("part", ["language model", "layers"])
def test_compiled(part: str, patch_first: bool) -> None:
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED)
    with torch.no_grad():
        with vtc.compress(model, Steps()):
            want, logits = model.generate(**batch, **GREEDY), model(**batch).logits
        if patch_first:
            vtc.apply(model, Steps())
        lm = model.model.language_model
        for module in [lm] if part == "language model" else lm.layers:
            module.compile(backend="eager", dynamic=True)
        if not patch_first:
            vtc.apply(model, Steps())
        assert torch.equal(model.generate(**batch, **GREEDY), want)
        assert torch.allclose(model(**batch).logits, logits, atol=1e-4)
        torch._dynamo.reset()


def breaks_of_a_step(model: Any, batch: dict[str, Any], method: Any) -> tuple[int, torch.Tensor]:
    """Graph breaks that a compiled language model has in a decoding step, and the step's logits."""
    config, width = model.config.get_text_config(), batch["input_ids"].shape[1]
    cache, mask = StaticCache(config=config, max_cache_len=width + 4), batch["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    lm, ids = model.model.language_model, batch["input_ids"][:, -1:]
    with torch.no_grad(), vtc.compress(model, method):
        model(**batch, position_ids=positions, use_cache=True, **{cache_name(): cache})
        torch._dynamo.reset()
        lm.compile(backend="eager")
        try:
            for step in range(3):
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
                torch._dynamo.utils.counters.clear()
                ask = {cache_name(): cache, "position_ids": mask.sum(1, keepdim=True) - 1}
                logits = model(input_ids=ids, attention_mask=mask, **ask).logits
                found = sum(torch._dynamo.utils.counters["graph_break"].values())
                if step == 0:
                    breaks = found
                    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
        finally:
            lm._compiled_call_impl = None
            torch._dynamo.reset()
    return breaks, logits


def test_decoding_has_no_break_of_ours() -> None:
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED)
    bare, _ = breaks_of_a_step(model, batch, "none")
    breaks, got = breaks_of_a_step(model, batch, Steps())
    assert breaks == bare

    config, width = model.config.get_text_config(), batch["input_ids"].shape[1]
    cache, mask = StaticCache(config=config, max_cache_len=width + 4), batch["attention_mask"]
    with torch.no_grad(), vtc.compress(model, Steps()):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        model(**batch, position_ids=positions, use_cache=True, **{cache_name(): cache})
        for _ in range(3):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            ask = {cache_name(): cache, "position_ids": mask.sum(1, keepdim=True) - 1}
            want = model(input_ids=batch["input_ids"][:, -1:], attention_mask=mask, **ask).logits
    assert torch.allclose(got, want, atol=1e-4)
