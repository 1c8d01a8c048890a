"""Running out of memory: how it shows on GPUs and CPUs, and what makes room again."""

from __future__ import annotations

import gc

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
