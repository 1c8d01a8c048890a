"""Attention that each key receives, averaged over queries and heads: a score without a CLS token.

The L x L probabilities are never in memory. The twin makes them for one block of queries at a time. The
kernels pass twice over the logits: once for each query's normaliser, once for the sums over queries; the
matrix product is done twice, 4 * B * H * L**2 * d FLOPs, and that is the floor from L ~ 500 on.

Bytes: reads queries and keys once for each block of the others (from the cache as a rule), writes and
reads 8 * B * H * L for normalisers and the sums of each head, writes 4 * B * L.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtc.kernels._dispatch import (
    Kernel,
    interpreted,
    next_power,
    register,
    stride_unit,
    use_triton,
    widened,
)
from vtc.kernels._rows import load_rows

if TYPE_CHECKING:
    import triton.language as tl


def attention_received(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Column means of the softmax attention matrix.

    Args:
        query: `[B, H, L, d]`, strided as they come.
        keys: `[B, H, L, d]`.
        scale: factor on the logits, normally `d ** -0.5`.

    Returns:
        Float32 `[B, L]`, non-negative, each row sums to 1. Gradients flow to both inputs, through the
        twin.
    """
    if use_triton(keys):
        return torch.ops.vtc.attention_received(query, keys, scale)
    return attention_received_torch(query, keys, scale)


def attention_received_torch(query: Tensor, keys: Tensor, scale: float, block: int = 128) -> Tensor:
    """The PyTorch twin; float64 is computed and returned in float64.

    Args:
        block: queries handled at a time.
    """
    batch, heads, length, _ = query.shape
    transposed = widened(keys).transpose(-1, -2)
    total = transposed.new_zeros(batch, keys.shape[2])
    for rows in query.split(block, dim=2):
        total = total + torch.softmax((widened(rows) * scale) @ transposed, dim=-1).sum((1, 2))
    return total / (heads * length)


@Kernel
def _normalisers(
    query, keys, normaliser, scale, heads, queries, length,
    query_b, query_h, query_l, keys_b, keys_h, keys_l,
    WIDTH: tl.constexpr, UNIT: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """For each query, log2 of the sum of 2 ** logit over all keys; `scale` holds log2(e)."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // heads, row % heads
    d = tl.arange(0, BLOCK_D)
    i = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q_rows = query + (b * query_b + h * query_h + i * query_l) * UNIT
    q = load_rows(q_rows, i < queries, d, WIDTH, UPCAST)
    high = tl.full([BLOCK_Q], -float("inf"), dtype=tl.float32)
    mass = tl.zeros([BLOCK_Q], dtype=tl.float32)
    for start in range(0, length, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        k_rows = keys + (b * keys_b + h * keys_h + j * keys_l) * UNIT
        k = load_rows(k_rows, j < length, d, WIDTH, UPCAST)
        x = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        x = tl.where(j[None, :] < length, x, -float("inf"))
        new = tl.maximum(high, tl.max(x, 1))
        mass = mass * tl.exp2(high - new) + tl.sum(tl.exp2(x - new[:, None]), 1)
        high = new
    tl.store(normaliser + row * queries + i, high + tl.log2(mass), mask=i < queries)


@Kernel
def _sums_over_queries(
    query, keys, normaliser, received, scale, share, heads, queries, length,
    query_b, query_h, query_l, keys_b, keys_h, keys_l,
    WIDTH: tl.constexpr, UNIT: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """For each key of one head, `share` times the sum of its probabilities."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // heads, row % heads
    d = tl.arange(0, BLOCK_D)
    j = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    k_rows = keys + (b * keys_b + h * keys_h + j * keys_l) * UNIT
    k = load_rows(k_rows, j < length, d, WIDTH, UPCAST)
    total = tl.zeros([BLOCK_K], dtype=tl.float32)
    for start in range(0, queries, BLOCK_Q):
        i = start + tl.arange(0, BLOCK_Q)
        q_rows = query + (b * query_b + h * query_h + i * query_l) * UNIT
        q = load_rows(q_rows, i < queries, d, WIDTH, UPCAST)
        x = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        # behind the last query: an infinite normaliser, so that nothing is added
        log = tl.load(normaliser + row * queries + i, mask=i < queries, other=float("inf"))
        total += tl.sum(tl.exp2(x - log[:, None]), 0)
    tl.store(received + row * length + j, total * share, mask=j < length)


def launch(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """The Triton path: 3 launches (normalisers, sums, mean over heads)."""
    batch, heads, length, width = keys.shape
    queries = query.shape[2]
    if query.dtype != keys.dtype:  # in the wider one: a float16 cannot hold every float32
        query, keys = query.float(), keys.float()
    query = query if query.stride(-1) == 1 else query.contiguous()
    keys = keys if keys.stride(-1) == 1 else keys.contiguous()
    received = keys.new_empty(batch, heads, length, dtype=torch.float32)
    normaliser = received.new_empty(batch, heads, queries)
    wide = keys.dtype == torch.float32  # multiplied without tensor cores
    block = 32 if wide else 64
    unit = stride_unit(query, keys)
    strides = [n // unit for n in (*query.stride()[:3], *keys.stride()[:3])]
    sizes = (heads, queries, length, *strides)
    options = dict(
        WIDTH=width, UNIT=unit, UPCAST=interpreted(),
        BLOCK_Q=block, BLOCK_K=block, BLOCK_D=max(next_power(width), 16),
        num_warps=8 if wide and width > 64 else 4, num_stages=1 if wide else 3,
    )  # fmt: skip
    scale = scale * 1.4426950408889634  # log2(e), because exp2 is what the hardware has
    rows = batch * heads
    _normalisers[(rows, -(-queries // block))](query, keys, normaliser, scale, *sizes, **options)
    _sums_over_queries[(rows, -(-length // block))](
        query, keys, normaliser, received, scale, 1 / max(heads * queries, 1), *sizes, **options
    )
    return received.sum(1)


def fake(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """The result not yet filled."""
    return keys.new_empty(keys.shape[0], keys.shape[2], dtype=torch.float32)


register(
    "attention_received",
    "(Tensor query, Tensor keys, float scale) -> Tensor",
    launch,
    fake,
    attention_received_torch,
)
