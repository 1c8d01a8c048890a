"""Attention of one query (the CLS token) over all keys of a tile, averaged over heads.

Only the one row is computed, never the L x L matrix: 2 * B * H * L * d FLOPs.

Bytes: reads the keys once, B * H * L * d elements, and writes 8 * B * L. On the way each head's logits
are written and read once, 8 * B * H * L, a sixteenth of the keys at d = 64 in half precision. The floor
is the time to read the keys.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtc.kernels._dispatch import Kernel, next_power, register, stride_unit, use_triton, widened
from vtc.kernels._rows import load_rows

if TYPE_CHECKING:
    import triton.language as tl


def cls_attention(query: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Head-averaged logits and probabilities of one query per tile.

    Args:
        query: `[B, H, d]`.
        keys: `[B, H, L, d]`, strided as they come.
        scale: factor on the logits, normally `d ** -0.5`.

    Returns:
        Logits and probabilities, both float32 `[B, L]`. The probabilities are the mean over heads of
        each head's softmax, so they are not the softmax of the logits.

    Gradients flow to both inputs.
    """
    if use_triton(keys):
        return torch.ops.vtc.cls_attention(query, keys, scale)
    return cls_attention_torch(query, keys, scale)


def cls_attention_torch(query: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The PyTorch twin; float64 is computed and returned in float64."""
    # The scale goes on the query first, as in the attention modules whose scores this reproduces.
    row = (widened(query) * scale)[:, :, None, :]
    logits = (row @ widened(keys).transpose(-1, -2)).squeeze(2)
    return logits.mean(1), torch.softmax(logits, dim=-1).mean(1)


@Kernel
def _head_logits(
    query, keys, logits, top, total, scale, heads, length,
    query_b, query_h, keys_b, keys_h, keys_l,
    WIDTH: tl.constexpr, UNIT: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One head of one tile: its logits, their maximum and the sum of exponentials behind it."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // heads, row % heads
    d = tl.arange(0, BLOCK_D)
    q = tl.load(query + (b * query_b + h * query_h) * UNIT + d, mask=d < WIDTH, other=0.0)
    q = q.to(tl.float32) * scale
    high = -float("inf")
    mass = 0.0
    for start in range(0, length, BLOCK_L):
        place = start + tl.arange(0, BLOCK_L)
        inside = place < length
        rows = keys + (b * keys_b + h * keys_h + place * keys_l) * UNIT
        x = tl.sum(load_rows(rows, inside, d, WIDTH, True) * q[None, :], 1)
        tl.store(logits + row * length + place, x, mask=inside)
        x = tl.where(inside, x, -float("inf"))
        new = tl.maximum(high, tl.max(x, 0))
        # a head of -inf so far: 0 in place of -inf keeps the differences numbers
        base = tl.where(new == -float("inf"), 0.0, new)
        mass = mass * tl.exp(high - base) + tl.sum(tl.exp(x - base), 0)
        high = new
    tl.store(top + row, high)
    tl.store(total + row, mass)


@Kernel
def _mean_over_heads(
    logits, top, total, mean_logits, mean_probabilities, heads, length,
    BLOCK_H: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    h = tl.arange(0, BLOCK_H)
    inside = (h[:, None] < heads) & (place[None, :] < length)
    row = b * heads + h
    x = tl.load(logits + row[:, None] * length + place[None, :], mask=inside, other=0.0)
    high = tl.load(top + row, mask=h < heads, other=0.0)
    mass = tl.load(total + row, mask=h < heads, other=1.0)
    p = tl.where(inside, tl.exp(x - high[:, None]) / mass[:, None], 0.0)
    out = b * length + place
    tl.store(mean_logits + out, tl.sum(x, 0) / heads, mask=place < length)
    tl.store(mean_probabilities + out, tl.sum(p, 0) / heads, mask=place < length)


def launch(query: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The Triton path: 2 launches."""
    batch, heads, length, width = keys.shape
    query = query if query.stride(-1) == 1 else query.contiguous()
    keys = keys if keys.stride(-1) == 1 else keys.contiguous()
    unit = stride_unit(query, keys)
    out = fake(query, keys, scale)
    logits = out[0].new_empty(batch, heads, length)
    top, total = logits.new_empty(2, batch, heads)
    _head_logits[(batch * heads,)](
        query, keys, logits, top, total, scale, heads, length,
        *(n // unit for n in (*query.stride()[:2], *keys.stride()[:3])),
        WIDTH=width, UNIT=unit, BLOCK_L=128, BLOCK_D=next_power(width), num_warps=4, num_stages=2,
    )  # fmt: skip
    _mean_over_heads[(batch, -(-length // 64))](
        logits, top, total, out[0], out[1], heads, length,
        BLOCK_H=next_power(heads), BLOCK_L=64, num_warps=4,
    )  # fmt: skip
    return out


def fake(query: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Results not yet filled."""
    batch, _, length, _ = keys.shape
    new = functools.partial(keys.new_empty, batch, length, dtype=torch.float32)
    return new(), new()


register(
    "cls_attention",
    "(Tensor query, Tensor keys, float scale) -> (Tensor, Tensor)",
    launch,
    fake,
    cls_attention_torch,
)
