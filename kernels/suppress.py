"""Patches that no kept one suppresses: what a greedy pass in some order leaves, without the pass.

Bytes: reads who is suppressed by whom once, N**2 a tile, and writes N; every step reads the same again,
from the cache. The twin is five launches a step and waits for the device after each, to know
whether anything changed; the kernel is one launch, a tile a program, and waits for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtc.kernels._dispatch import Kernel, next_power, opaque, register, use_triton
from vtc.kernels._ordering import LONGEST

if TYPE_CHECKING:
    import triton.language as tl


def suppress(by: Tensor, valid: Tensor) -> Tensor:
    """The valid patches that no kept one suppresses.

    A patch is right as soon as those that may suppress it are, so that a step that changes nothing is
    the last. Tiles of more than 4096 patches go to the twin.

    Args:
        by: bool `[S, N, N]`, whether the second patch, if it is kept, suppresses the first. There must
            be an order of the patches in which each is suppressed by earlier ones alone.
        valid: bool `[S, N]`.

    Returns:
        bool `[S, N]`.
    """
    if use_triton(by) and valid.shape[1] <= LONGEST:
        return torch.ops.vtc.suppress(by, valid)
    return suppress_torch(by, valid)


def _twin(by: Tensor, valid: Tensor) -> Tensor:
    """As many steps as the longest chain."""
    kept = valid
    while True:
        now = valid & ~(by & kept[:, None]).any(2)
        if torch.equal(now, kept):
            return now
        kept = now


@Kernel
def _settle(by, valid, kept, size, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr):
    """One tile: all its patches in steps, BLOCK_R at a time, until a step changes nothing."""
    s = tl.program_id(0).to(tl.int64)
    who, there, out = by + s * size * size, valid + s * size, kept + s * size
    j = tl.arange(0, BLOCK)
    now = tl.load(there + j, mask=j < size, other=0).to(tl.int8)
    changed = 1
    while changed > 0:
        for start in range(0, size, BLOCK_R):
            i = start + tl.arange(0, BLOCK_R)
            inside = (i < size)[:, None] & (j < size)[None, :]
            hit = tl.load(who + i[:, None] * size + j[None, :], mask=inside, other=0).to(tl.int8)
            free = tl.max(hit & now[None, :], 1) == 0
            real = tl.load(there + i, mask=i < size, other=0) != 0
            tl.store(out + i, free & real, mask=i < size)
        tl.debug_barrier()  # threads read what others wrote
        before = now
        now = tl.load(out + j, mask=j < size, other=0).to(tl.int8)
        changed = tl.sum((now != before).to(tl.int32), 0)
        tl.debug_barrier()  # and are done reading when the next step writes


def launch(by: Tensor, valid: Tensor) -> Tensor:
    """The Triton path: 1 launch."""
    tiles, size = valid.shape
    out, block = valid.new_empty(valid.shape), next_power(max(size, 2))
    _settle[(tiles if size else 0,)](
        by.contiguous(), valid.contiguous(), out, size,
        BLOCK_R=max(16384 // block, 1), BLOCK=block, num_warps=min(max(block // 128, 1), 8),
    )  # fmt: skip
    return out


def fake(by: Tensor, valid: Tensor) -> Tensor:
    """The result not yet filled."""
    return valid.new_empty(valid.shape)


_SCHEMA = "(Tensor by, Tensor valid) -> Tensor"
register("suppress", _SCHEMA, launch, fake)
#: the PyTorch twin
suppress_torch = opaque("suppress_torch", _SCHEMA, _twin, fake)
