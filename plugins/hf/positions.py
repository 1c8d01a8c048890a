"""Which positions the tokens of a shortened prompt get.

`original`: every token keeps the position it had, with gaps where tokens are gone, so distances in the
picture stay true. `contiguous`: the short prompt is numbered afresh, as if it had always been short.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.errors import VTCError

POLICIES = ("original", "contiguous")


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
