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
from vtc.kernels.drop_alike import drop_alike, rounds
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
    longest = rounds(lengths, wanted, step)
    return order, drop_alike(unit @ unit.mT, left, size, goal, longest, step)
