"""What people put around a model: off-loading, checkpointing, data parallel training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import vtc
from tests.families import tiny

FAMILIES = ["llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3"]
GREEDY = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)


def labelled(family: str) -> dict[str, Any]:
    batch = tiny.inputs(family, [[tiny.A], [tiny.C]], side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "labels": labels.masked_fill(labels == tiny.IMAGE, -100)}


def step(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    loss = model(**batch).loss
    loss.backward()
    full = [
        p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        for p in model.parameters()
        if p.grad is not None
    ]
    return loss.detach(), full


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_off_loaded(family: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, batch = tiny.build(family), tiny.inputs(family, [[tiny.A], [tiny.C]])
    with torch.no_grad(), vtc.compress(model, "globalcom2", retention=0.5):
        plain = model.generate(**batch, **GREEDY)
    accelerate.cpu_offload(model, execution_device="cpu")
    with torch.no_grad(), vtc.compress(model, "globalcom2", retention=0.5):
        assert torch.equal(model.generate(**batch, **GREEDY), plain)


@pytest.fixture
def one_process(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("family", FAMILIES)
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
