"""The maths of VisPruner: some by attention, others because they are unlike the rest.

Source: "Beyond Text-Visual Attention" (arXiv 2412.01818v2), from its description and behaviour. S
tiles, N patches a tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.functional.ragged import to_device
from vtc.kernels._dispatch import register
from vtc.kernels.segmented_topk import segmented_topk


def choose(
    attention: Tensor,
    features: Tensor,
    valid: Tensor,
    important: Sequence[int],
    lengths: Sequence[int],
    wanted: Sequence[int],
    step: int = 8,
) -> tuple[Tensor, Tensor]:
    """Patches by attention, and what the rounds leave of those behind the `important` ones.

    Args:
        attention: `[S, N]`.
        features: `[S, N, C]`, compared by cosine.
        valid: bool `[S, N]`, patches that are not padding.
        important: how many of each tile stay for their attention.
        lengths: how many are left behind these; 0 where none of them is wanted.
        wanted: how many of those stay.
        step: patches that a round drops of a tile.

    Returns:
        int64 `[S, N]`, patches by falling attention, padding last; and int64 `[S, most]`, what the
        rounds leave, in their order, then -1.
    """
    front, size, goal = to_device([important, lengths, wanted], attention)
    order = segmented_topk(attention, front, valid)[0]
    most = max(*lengths, 1)
    place = front[:, None] + torch.arange(most, device=order.device)
    left = order.gather(1, place.clamp(max=order.shape[1] - 1))
    unit = normalize(features.float(), dim=-1)
    drop = torch.ops.vtc.drop_alike
    return order, drop(unit @ unit.mT, left, size, goal, _rounds(lengths, wanted, step), step)


def _rounds(lengths: Sequence[int], wanted: Sequence[int], step: int) -> list[int]:
    """The most patches that a tile still has, in front of every round."""
    each, most = set(zip(lengths, wanted, strict=True)), []
    while any(n > goal for n, goal in each):
        most.append(max(n for n, _ in each))
        each = {(n - min(step, max(n - goal, 0), -(-n // 2)), goal) for n, goal in each}
    return most


def _drop_alike(
    similarity: Tensor, left: Tensor, size: Tensor, wanted: Tensor, most: Sequence[int], step: int
) -> Tensor:
    """Rounds that compare every other patch with those between, and drop the likest.

    What is left of the compared ones, by falling likeness, stands in front of the others in the next
    round: each round depends on the one before. One operation, of as many steps as there are rounds.

    Args:
        similarity: `[S, N, N]`.
        left: int64 `[S, L]`, patches in their order.
        size, wanted: int64 `[S]`, how many of them there are and are to be left.
        most: see `_rounds`.
        step: patches to drop in a round, of those compared.

    Returns:
        int64 `[S, L]`, then -1.
    """
    tile, place = (torch.arange(n, device=left.device) for n in left.shape)
    size, full = size[:, None], left.shape[1]
    for length in most:
        a, b = left[:, 0:length:2], left[:, 1:length:2]
        nth, half = place[:length], (size + 1) // 2
        there = nth < size
        in_a, in_b = there[:, 0::2], there[:, 1::2]
        drop = torch.minimum(size - wanted[:, None], half).clamp(0, step)
        alike = similarity[tile[:, None, None], a[..., None], b[:, None]]
        alike = alike.masked_fill(~in_b[:, None], -torch.inf).amax(2).masked_fill(~in_a, -torch.inf)
        by = alike.sort(dim=1, descending=True, stable=True).indices
        # the compared ones that stay, by falling likeness, then those between
        stay, both = half - drop, torch.cat([a.gather(1, by), b], 1)
        at = torch.where(nth < stay, nth + drop, nth - stay + a.shape[1])
        both = both.gather(1, at.clamp(max=length - 1))
        left, size = torch.where(drop > 0, both, left[:, :length]), size - drop
    left = torch.nn.functional.pad(left, (0, full - left.shape[1]))
    return left.masked_fill(torch.arange(full, device=left.device) >= size, -1)


register(
    "drop_alike",
    "(Tensor similarity, Tensor left, Tensor size, Tensor wanted, int[] most, int step) -> Tensor",
    _drop_alike,
    lambda similarity, left, size, wanted, most, step: torch.empty_like(left),
)
