"""The k most similar keys of each query, by cosine: whom a token is merged with.

Bytes: reads queries and keys for their lengths, then the keys once for each block of 16 queries (from
the cache as a rule), and writes 8 * TJk. The J x N similarities are never written: a program keeps the
best k of its queries on the chip while the keys stream past. 2 * TJNC FLOPs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from vtc.kernels._dispatch import Kernel, interpreted, next_power, register, use_triton, widened
from vtc.kernels._ordering import float_rank
from vtc.kernels._rows import load_rows
from vtc.kernels.segmented_topk import segmented_topk_torch

if TYPE_CHECKING:
    import triton.language as tl

#: most neighbours that fit on the chip; more go to the twin
MOST = 128


def cosine_topk(
    queries: Tensor,
    keys: Tensor,
    k: int,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    itself: Tensor | None = None,
) -> Tensor:
    """For each query the k keys of its tile with the largest `cosine + bias`; ties to the lower index.

    Args:
        queries: `[T, J, C]`.
        keys: `[T, N, C]`; products are summed in float32.
        k: keys wanted of each query, at least 1. More than 128 go to the twin.
        bias: `[T, N]`, added to the cosines.
        valid: bool `[T, N]`, keys that may be chosen; None for all.
        itself: int64 `[T, J]`, the key that a query must not choose; None for no such rule.

    Returns:
        int64 `[T, J, k]`, best first, -1 where there are fewer.
    """
    if use_triton(keys) and k <= MOST:
        return torch.ops.vtc.cosine_topk(queries, keys, k, bias, valid, itself)
    return cosine_topk_torch(queries, keys, k, bias, valid, itself)


def cosine_topk_torch(
    queries: Tensor,
    keys: Tensor,
    k: int,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    itself: Tensor | None = None,
) -> Tensor:
    """The PyTorch twin, with `[T, J, N]` scores; float64 is multiplied in float64."""
    tiles, count, _ = queries.shape
    patches = keys.shape[1]
    score = normalize(widened(queries), dim=-1) @ normalize(widened(keys), dim=-1).transpose(1, 2)
    if bias is not None:
        score = score + bias[:, None]
    candidate = torch.ones(tiles, 1, patches, dtype=torch.bool, device=keys.device)
    if valid is not None:
        candidate = valid[:, None]
    if itself is not None:
        candidate = candidate & (torch.arange(patches, device=keys.device) != itself[..., None])
    candidate = candidate.expand(tiles, count, patches)
    wanted = candidate.sum(-1).clamp(max=k)
    order, _ = segmented_topk_torch(
        score.view(tiles * count, patches), wanted.flatten(), candidate.flatten(0, 1)
    )
    found = order.view(tiles, count, patches)[..., :k]
    rank = torch.arange(found.shape[-1], device=keys.device)
    found = found.masked_fill(rank >= wanted[..., None], -1)
    return pad(found, (0, k - found.shape[-1]), value=-1)


@Kernel
def _stream_keys(
    queries, keys, query_length, key_length, bias, valid, itself, out,
    count, patches, width, k, queries_t, queries_j, keys_t, keys_n, bias_t, valid_t, itself_t,
    BIASED: tl.constexpr, MASKED: tl.constexpr, EXCLUDING: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The best BLOCK_N >= k of each query so far, as numbers that hold score and index together."""
    t = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    in_j = j < count
    own = tl.full([BLOCK_J], -1, dtype=tl.int64)
    if EXCLUDING:
        own = tl.load(itself + t * itself_t + j, mask=in_j, other=-1)
    norm_j = tl.maximum(tl.load(query_length + t * count + j, mask=in_j, other=1.0), 1e-12)
    best = tl.zeros([BLOCK_J, BLOCK_N], dtype=tl.int64)
    for first in range(0, patches, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        in_n = n < patches
        dots = tl.zeros([BLOCK_J, BLOCK_N], dtype=tl.float32)
        for start in range(0, width, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            a = load_rows(queries + t * queries_t + j * queries_j, in_j, c, width, UPCAST)
            b = load_rows(keys + t * keys_t + n * keys_n, in_n, c, width, UPCAST)
            dots = tl.dot(a, tl.trans(b), dots, input_precision="ieee")
        norm_n = tl.maximum(tl.load(key_length + t * patches + n, mask=in_n, other=1.0), 1e-12)
        score = dots / (norm_j[:, None] * norm_n[None, :])
        if BIASED:
            score += tl.load(bias + t * bias_t + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
        if MASKED:
            in_n &= tl.load(valid + t * valid_t + n, mask=in_n, other=0) != 0
        usable = in_n[None, :] & (own[:, None] != n[None, :])
        # larger is better, the lower index wins a tie, 0 is nothing
        found = (float_rank(score) << 31) | (0x7FFFFFFF - n.to(tl.int64))[None, :]
        found = tl.sort(tl.where(usable, found, 0), 1)
        # `best` falls and `found` rises: the larger of each pair are the best of both
        best = tl.sort(tl.maximum(best, found), 1, descending=True)
    rank = tl.arange(0, BLOCK_N)
    index = tl.where(best > 0, 0x7FFFFFFF - (best & 0x7FFFFFFF), -1)
    place = (t * count + j[:, None]) * k + rank[None, :]
    tl.store(out + place, index, mask=in_j[:, None] & (rank[None, :] < k))


def launch(
    queries: Tensor,
    keys: Tensor,
    k: int,
    bias: Tensor | None,
    valid: Tensor | None,
    itself: Tensor | None,
) -> Tensor:
    """The Triton path: 3 launches (two for lengths)."""
    tiles, count, width = queries.shape
    queries = queries.to(keys.dtype)
    queries = queries if queries.stride(-1) == 1 else queries.contiguous()
    keys = keys if keys.stride(-1) == 1 else keys.contiguous()
    bias, valid, itself = (
        x if x is None or x.stride(-1) == 1 else x.contiguous() for x in (bias, valid, itself)
    )
    query_length, key_length = (
        torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32) for x in (queries, keys)
    )
    out = fake(queries, keys, k, bias, valid, itself)
    wide = keys.dtype == torch.float32  # multiplied without tensor cores
    block = max(next_power(k), 32)
    _stream_keys[(tiles, -(-count // 16))](
        queries, keys, query_length, key_length, bias, valid, itself, out,
        count, keys.shape[1], width, k, *queries.stride()[:2], *keys.stride()[:2],
        *(0 if x is None else x.stride(0) for x in (bias, valid, itself)),
        BIASED=bias is not None, MASKED=valid is not None, EXCLUDING=itself is not None,
        UPCAST=interpreted(), BLOCK_J=16, BLOCK_N=block, BLOCK_C=32 if wide or block > 64 else 64,
        num_warps=4 if block <= 64 else 8, num_stages=1 if wide else 3,
    )  # fmt: skip
    return out


def fake(
    queries: Tensor,
    keys: Tensor,
    k: int,
    bias: Tensor | None,
    valid: Tensor | None,
    itself: Tensor | None,
) -> Tensor:
    """The result not yet filled."""
    return queries.new_empty(*queries.shape[:2], k, dtype=torch.int64)


register(
    "cosine_topk",
    "(Tensor queries, Tensor keys, int k, Tensor? bias, Tensor? valid, Tensor? itself) -> Tensor",
    launch,
    fake,
)
