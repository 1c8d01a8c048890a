"""Which positions the tokens of a shortened prompt get.

`original`: every token keeps the position it had, with gaps where tokens are gone, so distances in the
picture stay true. `contiguous`: the short prompt is numbered afresh, as if it had always been short.
`regrid`: positions keep their order but lose their gaps; with M-RoPE every axis by itself, so that
rows and columns that are left stay rows and columns.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.plugins.hf.compaction import Compaction

if TYPE_CHECKING:
    from vtc.plugins.hf.shorten import Turns

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
    base: nn.Module, kwargs: dict[str, Any], real: Tensor, past: Turns | None, first: int = 0
) -> Tensor:
    """Positions of the uncompressed prompt, as transformers gives them.

    Args:
        base: the inner model; M-RoPE models bring a `get_rope_index`.
        kwargs: the call's arguments; positions among them are taken.
        real: bool `[B, L]`, False for padding.
        past: what the cache holds already.
        first: position of the first token.

    Returns:
        int64 `[R, B, L]`: one row, or with M-RoPE text, time, height and width.
    """
    given = kwargs.get("position_ids")
    if given is not None:
        given = given if given.dim() == 3 else given[None]
        return given.expand(-1, *real.shape)
    count = default_positions(real) + first
    own = getattr(base, "get_rope_index", None)
    if own is None:
        return count[None]
    ids, types = kwargs.get("input_ids"), kwargs.get("mm_token_type_ids")
    if ids is None or types is None:
        warnings.warn(
            "mm_token_type_ids or input_ids are missing: transformers cannot make M-RoPE positions "
            "and counts tokens instead",
            stacklevel=2,
        )
        return count[None].expand(4, -1, -1)
    seen = 0 if past is None else past.seen
    # Later turns bring the grids of their new images alone: number them by themselves, then go on
    # behind what the cache holds
    extra = {k: kwargs.get(k) for k in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")}
    tail, _ = own(
        ids[:, seen:],
        mm_token_type_ids=types[:, seen:],
        attention_mask=real[:, seen:].long(),
        **{k: v for k, v in extra.items() if v is not None},
    )
    if past is not None:
        behind = past.positions[1:].amax((0, 2)) + 1
        tail = torch.cat([past.positions[1:], tail + behind[None, :, None]], 2)
    return torch.cat([count[None], tail])


def short_positions(policy: str, long: Tensor, compaction: Compaction) -> Tensor | None:
    """Positions of the short prompt.

    Args:
        policy: one of `POLICIES`.
        long: `[R, B, L]` from `prompt_positions`.
        compaction: how the short prompt reads from the long one.

    Returns:
        `[B, S]`, or `[R, B, S]` with M-RoPE, whose first row always counts without gaps; None where
        transformers is to count by itself.
    """
    count = default_positions(compaction.valid)
    if policy == "contiguous":
        return None if len(long) == 1 else count[None].expand(len(long), -1, -1).contiguous()
    rows = torch.stack([compaction.positions(row) for row in long])
    if policy == "regrid":
        rows = torch.stack([dense_rank(row, compaction.valid) for row in rows])
    if len(long) == 1:
        return rows[0]
    if len(long) == 4:
        rows[0] = count
    return rows


def dense_rank(values: Tensor, valid: Tensor) -> Tensor:
    """How many smaller distinct values a row holds, int64 `[B, S]`; 0 for padding.

    Args:
        values: int64 `[B, S]`.
        valid: bool `[B, S]`.
    """
    far = torch.iinfo(values.dtype).max
    ordered, order = values.masked_fill(~valid, far).sort(dim=1)
    step = torch.zeros_like(ordered)
    step[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).long()
    return torch.zeros_like(values).scatter_(1, order, step.cumsum(1)).masked_fill(~valid, 0)


def guard_packed(kwargs: dict) -> None:
    """Keep gaps in `position_ids` from being read as borders between packed sequences.

    Without a mask and a cache, transformers takes every gap for the start of another sequence and
    masks across it, silently. An explicit mask of ones says that it is one sequence.
    """
    positions, ids = kwargs.get("position_ids"), kwargs.get("input_ids")
    inputs = ids if ids is not None else kwargs.get("inputs_embeds")
    if positions is None or inputs is None or kwargs.get("attention_mask") is not None:
        return
    if kwargs.get("past_key_values") is None and positions.dim() == 2:
        kwargs["attention_mask"] = torch.ones(
            inputs.shape[:2], dtype=torch.long, device=inputs.device
        )
