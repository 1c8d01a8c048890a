"""Which positions the tokens of a shortened prompt get.

`original`: every token keeps the position it had, with gaps where tokens are gone, so distances in the
picture stay true. `contiguous`: the short prompt is numbered afresh, as if it had always been short.
`regrid`: positions keep their order but lose their gaps; with M-RoPE every axis by itself, so that
rows and columns that are left stay rows and columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.plugins.model.compaction import Compaction

POLICIES = ("original", "contiguous", "regrid")


def check_policy(policy: str) -> str:
    """`policy` itself, or `VTCError` when there is no such policy."""
    if policy not in POLICIES:
        raise VTCError(f"positions: got {policy!r}, allowed are {', '.join(POLICIES)}")
    return policy


def default_positions(real: Tensor) -> Tensor:
    """Positions that transformers gives the uncompressed rows: a running count of real tokens.

    Args:
        real: bool `[B, L]`.
    """
    return (real.long().cumsum(-1) - 1).clamp(min=0)


def prompt_positions(
    own: Callable[..., Any] | None,
    kwargs: Mapping[str, Any],
    real: Tensor,
    past: Tensor | None,
    seen: int = 0,
) -> Tensor:
    """Positions of the uncompressed prompt, as its model gives them.

    Args:
        own: what an M-RoPE model counts with, its `get_rope_index`; None where tokens are counted.
        kwargs: the call's arguments; positions among them are taken.
        real: bool `[B, L]`, False for padding.
        past: int64 `[R, B, T]`, positions of what the cache holds already, None for nothing.
        seen: how many of the L columns that is.

    Returns:
        int64 `[R, B, L]`: one row, or with M-RoPE text, time, height and width. They start at 0 where
        the columns do not hold what the cache does.
    """
    given = kwargs.get("position_ids")
    if given is not None:
        given = given if given.dim() == 3 else given[None]
        return given.expand(-1, *real.shape)
    count = default_positions(real)
    if own is None:
        if past is not None and seen:
            # what is in the cache may have had pictures that were made smaller: go on behind it
            after = torch.where(real[:, :seen].any(1), last_of(past) + 1, 0)
            tail = after[:, None] + default_positions(real[:, seen:])
            return torch.cat([past[:1], tail[None]], 2)
        return count[None]
    ids, types = kwargs.get("input_ids"), kwargs.get("mm_token_type_ids")
    if ids is None or types is None:
        warnings.warn(
            "mm_token_type_ids or input_ids are missing: transformers cannot make M-RoPE positions "
            "and counts tokens instead",
            stacklevel=2,
        )
        return count[None].expand(4, -1, -1)
    # Later turns bring the grids of their new images alone: number them by themselves, then go on
    # behind what the cache holds
    extra = {k: kwargs.get(k) for k in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")}
    tail, _ = own(
        ids[:, seen:],
        mm_token_type_ids=types[:, seen:],
        attention_mask=real[:, seen:].long(),
        **{k: v for k, v in extra.items() if v is not None},
    )
    if past is not None and seen:
        front = past[1:] if len(past) > 1 else past.expand(3, -1, -1)
        tail = torch.cat([front, tail + (last_of(past) + 1)[None, :, None]], 2)
    return torch.cat([count[None], tail])


def last_of(positions: Tensor) -> Tensor:
    """The largest position of each prompt, `[R, B, L]` to `[B]`; M-RoPE's text row is not one."""
    return (positions[1:] if len(positions) == 4 else positions).amax((0, 2))


def short_positions(
    policy: str, long: Tensor, compaction: Compaction, sample: Tensor | None = None
) -> Tensor:
    """Positions of the short prompt.

    Args:
        policy: one of `POLICIES`.
        long: `[R, B, L]` from `prompt_positions`.
        compaction: how the short prompt reads from the long one.
        sample: `[B, S]`, from `packed.sample_of_places`, where rows hold several samples.

    Returns:
        int64 `[R, B, S]`; with M-RoPE's four rows the first always counts without gaps.
    """
    count = default_positions(compaction.valid) if sample is None else count_within(sample)
    if policy == "contiguous":
        return count[None].expand(len(long), -1, -1).contiguous()
    rows = torch.stack([compaction.positions(row) for row in long])
    if policy == "regrid":
        rows = torch.stack([dense_rank(row, compaction.valid, sample) for row in rows])
    if len(long) == 4:
        rows[0] = count
    return rows


def next_of(positions: Tensor, valid: Tensor, policy: str) -> Tensor:
    """The position that follows a prompt on each axis, `[R, B, S]` to `[R, B]`.

    Text goes on behind the largest position of all axes, so that its own are alike; where gaps are
    closed axis by axis (`"regrid"`), behind the largest of its axis.
    """
    after = positions.masked_fill(~valid, -1).amax(2) + 1
    if policy != "regrid":
        after[-3:] = after[-3:].amax(0)
    return after


def count_within(sample: Tensor) -> Tensor:
    """Int64 `[B, S]`: how many places of the same sample stand before each, from samples `[B, S]`."""
    index = torch.arange(sample.shape[1], device=sample.device).expand_as(sample)
    first = torch.ones_like(sample, dtype=torch.bool)
    first[:, 1:] = sample[:, 1:] != sample[:, :-1]
    return index - torch.where(first, index, 0).cummax(1).values


def dense_rank(values: Tensor, valid: Tensor, sample: Tensor | None = None) -> Tensor:
    """How many smaller distinct values a row, or each sample of it, holds; 0 for padding.

    Args:
        values: int64 `[B, S]`.
        valid: bool `[B, S]`.
        sample: int64 `[B, S]`, ascending; None for one sample a row.

    Returns:
        int64 `[B, S]`.
    """
    if sample is not None:  # sample after sample, in steps that no position reaches
        values = values - values.amin(1, keepdim=True)
        values = values + sample * (values.amax() + 2)
    far = torch.iinfo(values.dtype).max
    ordered, order = values.masked_fill(~valid, far).sort(dim=1)
    step = torch.zeros_like(ordered)
    step[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).long()
    rank = torch.zeros_like(values).scatter_(1, order, step.cumsum(1)).masked_fill(~valid, 0)
    if sample is not None:
        number = (count_within(sample) == 0).cumsum(1)
        least = torch.full_like(rank, far).masked_fill(~valid, far)
        least.scatter_reduce_(1, number - 1, rank.masked_fill(~valid, far), "amin")
        rank = (rank - least.gather(1, number - 1)).masked_fill(~valid, 0)
    return rank
