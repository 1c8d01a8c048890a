"""What people put around a model: LoRA, compilation, off-loading, quantization, parallel training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vtc
from tests.families import by_hand, tiny

FAMILIES = ["llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "gemma3"]
GREEDY = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)
ROWS = [[tiny.A], [tiny.C]]

families = pytest.mark.parametrize("family", FAMILIES)
either_order = pytest.mark.parametrize("patch_first", [True, False])


def labelled(family: str) -> dict[str, Any]:
    batch = tiny.inputs(family, ROWS, side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "labels": labels.masked_fill(labels == tiny.IMAGE, -100)}


def language_model(model: Any) -> Any:
    return getattr(model.model, "language_model", None) or model.model.text_model


def step(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    loss = model(**batch).loss
    loss.backward()
    full = [
        p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        for p in model.parameters()
        if p.grad is not None
    ]
    return loss.detach(), full


@either_order
@families
def test_lora(family: str, patch_first: bool) -> None:
    """The same as with the adapters merged into the weights; they train; the patch comes off."""
    peft = pytest.importorskip("peft")
    model, batch = tiny.build(family), labelled(family)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "qkv"], init_lora_weights=False
    )
    if patch_first:
        vtc.apply(model, "globalcom2", retention=0.5)
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, settings)
    if not patch_first:
        vtc.apply(wrapped, "globalcom2", retention=0.5)
    out = wrapped(**batch)
    out.loss.backward()
    moved = [p.grad for n, p in wrapped.named_parameters() if "lora_B" in n and p.grad is not None]
    assert moved and all(bool(gradient.any()) for gradient in moved)
    vtc.remove(wrapped)
    assert not hasattr(model, "_vtc")
    merged = wrapped.merge_and_unload()
    with torch.no_grad(), vtc.compress(merged, "globalcom2", retention=0.5):
        torch.testing.assert_close(merged(**batch).logits, out.logits, atol=1e-3, rtol=1e-3)


@either_order
@families
def test_compiled_language_model(family: str, patch_first: bool) -> None:
    model, batch = tiny.build(family), tiny.inputs(family, ROWS)
    with torch.no_grad():
        with vtc.compress(model, "uniform", retention=0.5):
            want = model(**batch, use_cache=False).logits
        if patch_first:
            vtc.apply(model, "uniform", retention=0.5)
        language_model(model).compile(backend="eager", dynamic=True)
        if not patch_first:
            vtc.apply(model, "uniform", retention=0.5)
        for _ in range(2):
            got = model(**batch, use_cache=False).logits
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@families
def test_checkpointing_changes_nothing(family: str) -> None:
    model, batch = tiny.build(family), labelled(family)
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_enable()
    twin.train()
    model.train()
    with vtc.compress(model, "globalcom2", retention=0.5):
        loss, gradients = step(model, batch)
    with vtc.compress(twin, "globalcom2", retention=0.5):
        again, others = step(twin, batch)
    torch.testing.assert_close(loss, again)
    assert len(gradients) == len(others)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("way", ["cpu_offload", "dispatch_model"])
@families
def test_off_loaded(family: str, way: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, batch = tiny.build(family), tiny.inputs(family, ROWS)
    with torch.no_grad(), vtc.compress(model, "globalcom2", retention=0.5):
        plain = model.generate(**batch, **GREEDY)
    if way == "cpu_offload":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    try:
        with torch.no_grad():
            model.generate(**batch, **GREEDY)
    except RuntimeError as error:  # Idefics3 looks for its device, which is "meta" once off-loaded
        pytest.skip(f"upstream: {error}")
    with torch.no_grad(), vtc.compress(model, "globalcom2", retention=0.5):
        assert torch.equal(model.generate(**batch, **GREEDY), plain)


@families
def test_four_bits(family: str, tmp_path: Path) -> None:
    """bitsandbytes on the CPU: retention 1.0 changes no bit, compressed equals the reference."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    original = tiny.build(family)
    original.save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head"])
    model = type(original).from_pretrained(tmp_path, quantization_config=settings).eval()
    assert any(type(m).__name__ == "Linear4bit" for m in language_model(model).modules())
    batch = tiny.inputs(family, [[tiny.A]])
    method = vtc.create_method("uniform", retention=0.5)
    with torch.no_grad():
        try:
            plain = model(**batch).logits
        except RuntimeError as error:  # its kernel for AVX-512 takes no layer narrower than a block
            pytest.skip(f"bitsandbytes cannot run the bare model on this processor: {error}")
        with vtc.compress(model, "uniform", retention=1.0):
            assert torch.equal(model(**batch).logits, plain)
        with vtc.compress(model, method):
            got = model(**batch).logits[0]
        want = by_hand.logits(model, by_hand.shorten(model, batch, method, "original"))
    assert len(got) < plain.shape[1]
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)


@pytest.fixture
def one_process(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@families
def test_data_parallel(family: str, kind: str, one_process: None) -> None:
    """One process: the same loss and gradients as without."""
    model, batch = tiny.build(family), labelled(family)
    with vtc.compress(model, "globalcom2", retention=0.5):
        loss, gradients = step(model, batch)
    twin = tiny.build(family)
    vtc.apply(twin, "globalcom2", retention=0.5)
    if kind == "ddp":
        twin = torch.nn.parallel.DistributedDataParallel(twin, find_unused_parameters=True)
    else:
        from torch.distributed.fsdp import fully_shard

        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        fully_shard(twin, mesh=mesh)
    again, others = step(twin, batch)
    torch.testing.assert_close(loss, again)
    assert len(gradients) == len(others)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
