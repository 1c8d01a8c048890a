"""How many other patches of a tile look alike: counts of cosine similarities above a threshold.

Bytes: reads the keys for their lengths, TNC elements, and once more for each block of 64 patches, from
the cache as a rule; writes 8 * TN. The N x N similarities are never written. T * N**2 * C FLOPs, half
of the full matrix, because a pair of patches is looked at once. The floor is the larger of one pass over
the keys and these FLOPs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.kernels._dispatch import Kernel, interpreted, register, use_triton, widened
from vtc.kernels._rows import load_rows

if TYPE_CHECKING:
    import triton.language as tl


def neighbour_count(keys: Tensor, alpha: float, valid: Tensor | None = None) -> Tensor:
    """For each patch, the number of other valid patches with cosine similarity above `alpha`.

    Args:
        keys: `[T, N, C]`, compared within a tile; products are summed in float32.
        alpha: threshold, strict (`>`).
        valid: bool `[T, N]`, patches that take part; None for all. Others count 0.

    Returns:
        int64 `[T, N]`.
    """
    if use_triton(keys):
        return torch.ops.vtc.neighbour_count(keys, alpha, valid)
    return neighbour_count_torch(keys, alpha, valid)


def neighbour_count_torch(
    keys: Tensor, alpha: float, valid: Tensor | None = None, block: int = 256
) -> Tensor:
    """The PyTorch twin, in blocks of rows, so that no `[N, N]` exists; float64 is compared in float64.

    Args:
        block: rows of similarities in memory at a time.
    """
    unit = normalize(widened(keys), dim=-1)
    tiles, patches, _ = unit.shape
    index = torch.arange(patches, device=keys.device)
    counts = []
    for start in range(0, patches, block):
        rows = slice(start, start + block)
        alike = unit[:, rows] @ unit.transpose(1, 2) > alpha
        alike &= index[rows, None] != index
        if valid is not None:
            alike &= valid[:, None, :] & valid[:, rows, None]
        counts.append(alike.sum(-1))
    return torch.cat(counts, 1) if counts else keys.new_zeros(tiles, 0, dtype=torch.int64)


@Kernel
def _count_pairs(
    keys, length, valid, count, alpha, patches, width, keys_t, keys_n, valid_t, valid_n,
    MASKED: tl.constexpr, UPCAST: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A block of patches against one that is not before it; whole numbers add up in any order."""
    t = tl.program_id(0).to(tl.int64)
    if tl.program_id(2) >= tl.program_id(1):
        i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        j = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
        tile = keys + t * keys_t
        dots = tl.zeros([BLOCK, BLOCK], dtype=tl.float32)
        for start in range(0, width, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            a = load_rows(tile + i * keys_n, i < patches, c, width, UPCAST)
            b = load_rows(tile + j * keys_n, j < patches, c, width, UPCAST)
            dots = tl.dot(a, tl.trans(b), dots, input_precision="ieee")
        in_i, in_j = i < patches, j < patches
        norm_i = tl.maximum(tl.load(length + t * patches + i, mask=in_i, other=1.0), 1e-12)
        norm_j = tl.maximum(tl.load(length + t * patches + j, mask=in_j, other=1.0), 1e-12)
        if MASKED:
            in_i &= tl.load(valid + t * valid_t + i * valid_n, mask=in_i, other=0) != 0
            in_j &= tl.load(valid + t * valid_t + j * valid_n, mask=in_j, other=0) != 0
        alike = dots > alpha * (norm_i[:, None] * norm_j[None, :])
        alike &= in_i[:, None] & in_j[None, :] & (i[:, None] != j[None, :])
        alike = alike.to(tl.int64)
        tl.atomic_add(count + t * patches + i, tl.sum(alike, 1), mask=in_i)
        if tl.program_id(2) > tl.program_id(1):
            tl.atomic_add(count + t * patches + j, tl.sum(alike, 0), mask=in_j)


def launch(keys: Tensor, alpha: float, valid: Tensor | None) -> Tensor:
    """The Triton path: 3 launches (lengths, zeros, pairs)."""
    tiles, patches, width = keys.shape
    keys = keys if keys.stride(-1) == 1 else keys.contiguous()
    length = torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32)
    count = torch.zeros_like(length, dtype=torch.int64)
    wide = keys.dtype == torch.float32  # multiplied without tensor cores
    block = 32 if wide else 64
    blocks = -(-patches // block)
    _count_pairs[(tiles, blocks, blocks)](
        keys, length, valid, count, alpha, patches, width, *keys.stride()[:2],
        *(valid.stride() if valid is not None else (0, 0)),
        MASKED=valid is not None, UPCAST=interpreted(), BLOCK=block, BLOCK_C=32 if wide else 64,
        num_warps=4, num_stages=1 if wide else 3,
    )  # fmt: skip
    return count


def fake(keys: Tensor, alpha: float, valid: Tensor | None) -> Tensor:
    """The result not yet filled."""
    return keys.new_empty(keys.shape[:2], dtype=torch.int64)


register("neighbour_count", "(Tensor keys, float alpha, Tensor? valid) -> Tensor", launch, fake)
