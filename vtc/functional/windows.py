"""Windows over a grid of patches, and ranks inside them."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.kernels.segmented_topk import segmented_topk


def windows(grid: tuple[int, int], side: int, device: torch.device) -> tuple[Tensor, int]:
    """Which window each patch of a grid is in, and how many windows there are.

    As many whole windows as fit, at least one along each axis; the last of a row and of a column take
    what is left over.

    Args:
        grid: `(rows, cols)`.
        side: patches along a window's side.
        device: where the numbers are wanted.

    Returns:
        int64 `[N]`, row-major, and their number.
    """
    down, across = (max(extent // side, 1) for extent in grid)
    row = (torch.arange(grid[0], device=device) // side).clamp(max=down - 1)
    col = (torch.arange(grid[1], device=device) // side).clamp(max=across - 1)
    return (row[:, None] * across + col).flatten(), down * across


def rank_within(scores: Tensor, group: Tensor, groups: int, valid: Tensor) -> Tensor:
    """Int64 `[S, N]`: how many valid entries of its own group are ahead of each, by falling score.

    Args:
        scores: `[S, N]`; ties go to the lower entry.
        group: int64 `[N]` or `[S, N]`, from 0 to `groups - 1`.
        valid: bool `[S, N]`; ranks of other entries are of no meaning.
    """
    order = segmented_topk(scores, valid.sum(1), valid)[0]
    group = torch.where(valid, group, groups).gather(1, order)
    group, by = torch.sort(group, dim=1, stable=True)
    place = torch.arange(scores.shape[1], device=scores.device).expand_as(by)
    first = torch.searchsorted(group, group)
    return torch.empty_like(order).scatter_(1, order.gather(1, by), place - first)
