"""Attention probabilities of a few query rows over all keys of a sequence, of each head or their mean.

The S x S map is never made: R rows of it are, 2 * B * H * R * S * d FLOPs. Heads that share keys read
them together, and sequences are cut into blocks of keys, so that one row fills a GPU too.

Bytes: reads the keys once, B * G * S * d elements, for every 16 rows of a group, and writes
4 * B * H * R * S, or 4 * B * R * S of means. On the way the logits are written and read once,
8 * B * H * R * S. For one row the floor is the time to read the keys.
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


def row_attention(
    query: Tensor,
    keys: Tensor,
    scale: float,
    allowed: Tensor | None = None,
    mean: bool = False,
    softcap: float | None = None,
) -> Tensor:
    """Probabilities of some rows, softmax in float32 over the keys that each may see.

    Args:
        query: `[B, H, R, d]`, the rows that are wanted.
        keys: `[B, G, S, d]`, strided as they come; G divides H, and heads `h` to `h + H / G - 1` share
            the keys of a group, as grouped-query attention has it.
        scale: factor on the logits, normally `d ** -0.5`.
        allowed: bool `[B, R, S]`, the keys that a row may see; None for all. A row that sees none is 0.
        mean: whether to give the mean over heads.
        softcap: the bound c that logits x are squashed to, `c tanh(x / c)`; None for none.

    Returns:
        Float32 `[B, H, R, S]`, or `[B, R, S]` of means. Gradients flow to query and keys, through the
        twin.
    """
    if use_triton(keys):
        return torch.ops.vtc.row_attention(query, keys, scale, allowed, mean, softcap)
    return row_attention_torch(query, keys, scale, allowed, mean, softcap)


def row_attention_torch(
    query: Tensor,
    keys: Tensor,
    scale: float,
    allowed: Tensor | None = None,
    mean: bool = False,
    softcap: float | None = None,
) -> Tensor:
    """The PyTorch twin; float64 is computed and returned in float64."""
    groups = keys.shape[1]
    # The scale goes on the query first, as in the attention modules whose scores this reproduces.
    rows = (widened(query) * scale).unflatten(1, (groups, -1))
    logits = rows.flatten(2, 3) @ widened(keys).mT
    logits = logits.unflatten(2, rows.shape[2:4]).flatten(1, 2)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if allowed is None:
        out = torch.softmax(logits, dim=-1)
    else:
        hidden = ~allowed[:, None]
        least = torch.finfo(logits.dtype).min
        out = torch.softmax(logits.masked_fill(hidden, least), dim=-1).masked_fill(hidden, 0)
    return out.mean(1) if mean else out


@Kernel
def _row_logits(
    query, keys, allowed, logits, normaliser, scale, cap, groups, rows, members, length, blocks,
    query_b, query_h, query_r, keys_b, keys_g, keys_s, allowed_b, allowed_r, allowed_s,
    WIDTH: tl.constexpr, UNIT: tl.constexpr, UPCAST: tl.constexpr, MASKED: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Logits of `members` rows, those of all heads of a group, with one block of keys; -inf where a row
    may not see a key; and the log of the sum of their exponentials."""
    tiles = (members + BLOCK_M - 1) // BLOCK_M
    group = (tl.program_id(0) // tiles).to(tl.int64)
    b, g = group // groups, group % groups
    d = tl.arange(0, BLOCK_D)
    m = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = m < members
    head, r = g * (members // rows) + m // rows, m % rows
    q_rows = query + (b * query_b + head * query_h + r * query_r) * UNIT
    q = load_rows(q_rows, inside, d, WIDTH, UPCAST)
    block = tl.program_id(1)
    j = block * BLOCK_K + tl.arange(0, BLOCK_K)
    k_rows = keys + (b * keys_b + g * keys_g + j.to(tl.int64) * keys_s) * UNIT
    k = load_rows(k_rows, j < length, d, WIDTH, UPCAST)
    x = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if CAPPED:  # tanh
        x = cap * (2 * tl.sigmoid(2 * x / cap) - 1)
    both = inside[:, None] & (j[None, :] < length)
    seen = both
    if MASKED:
        at = allowed + b * allowed_b + r[:, None] * allowed_r + j[None, :] * allowed_s
        seen &= tl.load(at, mask=both, other=0) != 0
    x = tl.where(seen, x, -float("inf"))
    high = tl.max(x, 1)
    # a block of -inf: 0 in place of -inf keeps the differences numbers
    base = tl.where(high == -float("inf"), 0.0, high)
    log = base + tl.log(tl.sum(tl.exp(x - base[:, None]), 1))
    row = group * members + m
    tl.store(logits + row[:, None] * length + j[None, :], x, mask=both)
    tl.store(normaliser + row * blocks + block, log, mask=inside)


@Kernel
def _mean_probabilities(
    logits, normaliser, out, heads, rows, length, share,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """`share` times the sum over heads of `exp(logit - normaliser)`."""
    row = tl.program_id(0).to(tl.int64)
    b, r = row // rows, row % rows
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for h in range(0, heads):
        at = (b * heads + h) * rows + r
        x = tl.load(logits + at * length + j, mask=j < length, other=-float("inf"))
        log = tl.load(normaliser + at)
        # a row that sees nothing has a normaliser of -inf, and only logits of -inf
        total += tl.where(x == -float("inf"), 0.0, tl.exp(x - log))
    tl.store(out + row * length + j, total * share, mask=j < length)


def launch(
    query: Tensor,
    keys: Tensor,
    scale: float,
    allowed: Tensor | None,
    mean: bool,
    softcap: float | None,
) -> Tensor:
    """The Triton path: 3 launches (logits, normalisers of whole rows, probabilities)."""
    batch, heads, rows, width = query.shape
    groups, length = keys.shape[1:3]
    if query.dtype != keys.dtype:  # in the wider one: a float16 cannot hold every float32
        query, keys = query.float(), keys.float()
    query = query if query.stride(-1) == 1 else query.contiguous()
    keys = keys if keys.stride(-1) == 1 else keys.contiguous()
    out = fake(query, keys, scale, allowed, mean, softcap)
    wide = next_power(width) > 128
    block = 32 if keys.dtype == torch.float32 or wide else 64
    blocks = -(-length // block)
    logits = out.new_empty(batch * heads * rows, length)
    normaliser = out.new_empty(batch * heads * rows, blocks)
    unit = stride_unit(query, keys)
    members = heads // groups * rows
    _row_logits[(batch * groups * -(-members // 16), blocks)](
        query, keys, allowed, logits, normaliser, scale, softcap or 1.0,
        groups, rows, members, length, blocks,
        *(n // unit for n in (*query.stride()[:3], *keys.stride()[:3])),
        *(allowed.stride() if allowed is not None else (0, 0, 0)),
        WIDTH=width, UNIT=unit, UPCAST=interpreted(), MASKED=allowed is not None,
        CAPPED=softcap is not None,
        BLOCK_M=16, BLOCK_K=block, BLOCK_D=max(next_power(width), 16), num_warps=4, num_stages=1,
    )  # fmt: skip
    total = torch.logsumexp(normaliser, -1)
    summed, each = (heads, batch * rows) if mean else (1, batch * heads * rows)
    _mean_probabilities[(each, -(-length // 256))](
        logits, total, out, summed, rows, length, 1 / max(summed, 1), BLOCK=256, num_warps=2
    )
    return out


def fake(
    query: Tensor,
    keys: Tensor,
    scale: float,
    allowed: Tensor | None,
    mean: bool,
    softcap: float | None,
) -> Tensor:
    """The result not yet filled."""
    batch, heads, rows, _ = query.shape
    shape = (batch, rows) if mean else (batch, heads, rows)
    return keys.new_empty(*shape, keys.shape[2], dtype=torch.float32)


register(
    "row_attention",
    "(Tensor query, Tensor keys, float scale, Tensor? allowed, bool mean, float? softcap) -> Tensor",
    launch,
    fake,
    row_attention_torch,
)
