"""Bytes: of weights, of a KV cache, and at the peak of a call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def weight_bytes(holders: Iterable[Any]) -> int:
    """Bytes of all weights, each storage once.

    Args:
        holders: modules, single parameters, and anything else, which counts nothing.
    """
    storages: dict[int, int] = {}
    for holder in holders:
        if isinstance(holder, nn.Module):
            tensors = [*holder.parameters(), *holder.buffers()]
        else:
            tensors = [holder] if isinstance(holder, Tensor) else []
        for tensor in tensors:
            storage = tensor.untyped_storage()
            # on the meta device nothing has an address
            storages[storage.data_ptr() or id(tensor)] = storage.nbytes()
    return sum(storages.values())


def cache_bytes(cache: Any) -> list[int]:
    """Bytes of the keys and values in a `transformers` cache, layer by layer."""
    return [
        sum(x.nbytes for x in (layer.keys, layer.values) if isinstance(x, Tensor))
        for layer in cache.layers
    ]


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """What PyTorch's allocator holds at most during `call`, beyond what it held before.

    On CUDA `torch.cuda.max_memory_allocated`. On a CPU the running sum of all allocations that
    PyTorch's profiler reports, those inside operators included: the same definition. What libraries
    allocate past PyTorch (matrix kernels that pack their operands) is in neither.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # the profiler greets on stderr; it reads this when it is first used
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        held += size
        peak = max(peak, held)
    return peak
