"""Memory: what a call takes, how running out shows on GPUs and CPUs, and what makes room again."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

#: in the messages of CPU allocators, whose errors have no class of their own
TEXTS = ("out of memory", "not enough memory", "t allocate memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether this is what went wrong."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(text in said for text in TEXTS)


def free_memory() -> None:
    """Give back what nobody holds any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_allocated(call: Callable[[], Any], device: Any = "cpu") -> int:
    """Bytes that PyTorch held at most while `call` ran, above what it held before; its result counts.

    On CUDA devices by the allocator's statistics. On the CPU by PyTorch's own allocator, whose every
    allocation the profiler notes: what other libraries take for themselves (NumPy's arrays, buffers
    inside of matrix products) is not in it.
    """
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # two lines for every profile otherwise
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    events = profile.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        held += change
        most = max(most, held)
    return most
