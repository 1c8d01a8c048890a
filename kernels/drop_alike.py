"""Rounds that compare every other patch with those between, and drop the likest.

Bytes: reads a tile's cosines once, 4 * N**2, and writes 8 * L. A round over n patches looks at n**2 / 4
cosines, which are in the cache by then, and depends on the round before: looking and sorting, not
memory, are the limit. The twin is some twenty launches a round, and LLaVA-NeXT's shapes have fifty
rounds; the kernel is one launch, a tile a program, and sorts on the chip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.kernels._dispatch import Kernel, next_power, opaque, register, use_triton
from vtc.kernels._ordering import LONGEST, float_rank

if TYPE_CHECKING:
    import triton.language as tl


def drop_alike(
    similarity: Tensor, left: Tensor, size: Tensor, wanted: Tensor, most: Sequence[int], step: int
) -> Tensor:
    """What is left of some patches; of equal likeness the first of the list goes.

    The places 0, 2, .. of a list look for the likest of the places 1, 3, .. Those with the likest are
    dropped. What is left of the compared ones, by falling likeness, stands in front of the others in the
    next round. Lists of more than 4096 patches go to the twin.

    Args:
        similarity: `[S, N, N]`, compared in float32.
        left: int64 `[S, L]`, patches in their order.
        size, wanted: int64 `[S]`, how many of them there are and are to be left.
        most: the longest list in front of every round, see `rounds`.
        step: patches to drop in a round, of those compared.

    Returns:
        int64 `[S, L]`, then -1.
    """
    arguments = similarity.detach(), left, size, wanted, list(most), step
    if use_triton(similarity) and left.shape[1] <= LONGEST:
        return torch.ops.vtc.drop_alike(*arguments)
    return drop_alike_torch(*arguments)


def rounds(lengths: Sequence[int], wanted: Sequence[int], step: int) -> list[int]:
    """The most patches that a tile still has, in front of every round.

    Args:
        lengths, wanted: of each tile, how many there are and are to be left.
    """
    each, most = set(zip(lengths, wanted, strict=True)), []
    while any(n > goal for n, goal in each):
        most.append(max(n for n, _ in each))
        each = {(n - min(step, max(n - goal, 0), -(-n // 2)), goal) for n, goal in each}
    return most


def _twin(
    similarity: Tensor, left: Tensor, size: Tensor, wanted: Tensor, most: Sequence[int], step: int
) -> Tensor:
    """As many steps as there are rounds."""
    tile, place = (torch.arange(n, device=left.device) for n in left.shape)
    size, full = size[:, None], left.shape[1]
    for length in most:
        a, b = left[:, 0:length:2], left[:, 1:length:2]
        nth, half = place[:length], (size + 1) // 2
        there = nth < size
        in_a, in_b = there[:, 0::2], there[:, 1::2]
        drop = torch.minimum(size - wanted[:, None], half).clamp(0, step)
        alike = similarity[tile[:, None, None], a[..., None], b[:, None]]
        alike = alike.masked_fill(~in_b[:, None], -torch.inf)
        alike = alike.amax(2) if length > 1 else alike.new_full(a.shape, -torch.inf)
        alike = alike.masked_fill(~in_a, -torch.inf)
        by = alike.sort(dim=1, descending=True, stable=True).indices
        # the compared ones that stay, by falling likeness, then those between
        stay, both = half - drop, torch.cat([a.gather(1, by), b], 1)
        at = torch.where(nth < stay, nth + drop, nth - stay + a.shape[1])
        both = both.gather(1, at.clamp(max=length - 1))
        left, size = torch.where(drop > 0, both, left[:, :length]), size - drop
    left = pad(left, (0, full - left.shape[1]))
    return left.masked_fill(torch.arange(full, device=left.device) >= size, -1)


@Kernel
def _drop_in_rounds(
    left, similarity, size, wanted, near, out, patches, full, step,
    BLOCK: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """One tile: its list is kept in `out`, the likeness of the compared ones in `near`."""
    s = tl.program_id(0).to(tl.int64)
    alike, here, found = similarity + s * patches * patches, out + s * full, near + s * full
    i = tl.arange(0, BLOCK)
    n, goal = tl.load(size + s).to(tl.int32), tl.load(wanted + s).to(tl.int32)
    for start in range(0, full, BLOCK):
        entry = tl.load(left + s * full + start + i, mask=start + i < full, other=0)
        tl.store(here + start + i, tl.where(start + i < n, entry, -1), mask=start + i < full)
    tl.debug_barrier()  # from here on threads read what others wrote
    while n > goal:
        half = (n + 1) // 2
        drop = tl.minimum(tl.minimum(n - goal, half), step)
        for start in range(0, half, BLOCK_A):
            a = start + tl.arange(0, BLOCK_A)
            row = tl.load(here + 2 * a, mask=a < half, other=0)
            best = tl.full([BLOCK_A], float("-inf"), dtype=tl.float32)
            for first in range(0, n // 2, BLOCK_B):
                b = first + tl.arange(0, BLOCK_B)
                column = tl.load(here + 2 * b + 1, mask=b < n // 2, other=0)
                both = (a < half)[:, None] & (b < n // 2)[None, :]
                x = tl.load(
                    alike + row[:, None] * patches + column[None, :], mask=both, other=float("-inf")
                )
                best = tl.maximum(best, tl.max(x.to(tl.float32), 1))
            tl.store(found + a, best, mask=a < half)
        tl.debug_barrier()
        x = tl.load(found + i, mask=i < half, other=0.0)
        falling = tl.where(i < half, 0xFFFFFFFF - float_rank(x), 0)
        behind = (i >= half).to(tl.int64)
        by = tl.sort((behind << 48) | (falling << 16) | i.to(tl.int64)) & 0xFFFF
        stays = (i >= drop) & (i < half)
        stay = tl.load(here + 2 * by, mask=stays, other=0)
        between = tl.load(here + 2 * i + 1, mask=i < n // 2, other=0)
        tl.debug_barrier()
        tl.store(here + i - drop, stay, mask=stays)
        tl.store(here + half - drop + i, between, mask=i < n // 2)
        n -= drop
        # and nothing behind the list
        tl.store(here + n + i, tl.full([BLOCK], -1, dtype=tl.int64), mask=i < drop)
        tl.debug_barrier()


def launch(
    similarity: Tensor, left: Tensor, size: Tensor, wanted: Tensor, most: Sequence[int], step: int
) -> Tensor:
    """The Triton path: 1 launch for all rounds."""
    similarity, left = similarity.contiguous(), left.contiguous()
    (tiles, full), out = left.shape, torch.empty_like(left)
    near = similarity.new_empty(left.shape, dtype=torch.float32)
    block = next_power(max(-(-full // 2), 2))
    _drop_in_rounds[(tiles if full else 0,)](
        left, similarity, size.contiguous(), wanted.contiguous(), near, out,
        similarity.shape[1], full, step,
        BLOCK=block, BLOCK_A=min(block, 64), BLOCK_B=min(block, 64),
        num_warps=8,
    )  # fmt: skip
    return out


def fake(
    similarity: Tensor, left: Tensor, size: Tensor, wanted: Tensor, most: Sequence[int], step: int
) -> Tensor:
    """The result not yet filled."""
    return left.new_empty(left.shape)


_SCHEMA = (
    "(Tensor similarity, Tensor left, Tensor size, Tensor wanted, int[] most, int step) -> Tensor"
)
register("drop_alike", _SCHEMA, launch, fake)
#: the PyTorch twin, in the dtype of the similarity
drop_alike_torch = opaque("drop_alike_torch", _SCHEMA, _twin, fake)
