"""The maths of token-level correlation-guided compression.

Source: "Token-level Correlation-guided Compression" (arXiv 2407.14439). No code was published; the
formulas are this project's reading of the figure and of summaries. T tiles, N patches a tile; all
functions take a mask of the patches that are not padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.kernels.neighbour_count import neighbour_count

__all__ = [
    "any_of_cell",
    "attention_over_patches",
    "iqr_fence",
    "neighbour_count",
    "redundant_patches",
    "sampling_number",
]


def redundant_patches(count: Tensor, beta: float, valid: Tensor) -> Tensor:
    """Bool `[T, N]`: valid patches with more than `beta * (n - 1)` look-alikes among their n - 1
    fellows.

    Args:
        count: int64 `[T, N]`, from `neighbour_count`.
        beta: share of the fellows, strict.
        valid: bool `[T, N]`.
    """
    # in float64: beta * fellows is on the border of a whole number where it is one on paper
    fellows = (valid.sum(1, dtype=torch.float64) - 1).clamp(min=0)
    return (count > torch.floor(beta * fellows)[:, None]) & valid


def sampling_number(redundant: Tensor, valid: Tensor) -> Tensor:
    """Int64 `[T]`: tokens to draw, the information density times n, at least 1 (0 without patches).

    The density is the share of patches that are not redundant, so the product is a count already.
    """
    total = valid.sum(1)
    return torch.minimum((total - redundant.sum(1)).clamp(min=1), total)


def iqr_fence(values: Tensor, valid: Tensor, factor: float = 1.5) -> Tensor:
    """Float32 `[T, 3]`: both quartiles and the upper outlier fence `Q3 + factor * (Q3 - Q1)`.

    Quartiles are interpolated linearly; in rows without valid entries no value is above the fence.
    """
    line = values.float().masked_fill(~valid, torch.inf).sort(-1).values
    # places of the quartiles in quarters of a step, so that they are whole numbers
    quarters = (valid.sum(-1, keepdim=True) - 1) * torch.arange(1, 4, 2, device=values.device)
    below = (quarters // 4).clamp(min=0)
    above = (below + 1).clamp(max=line.shape[-1] - 1)
    part = (quarters % 4) / 4
    quartile = torch.lerp(
        line.gather(-1, below), line.gather(-1, torch.where(part > 0, above, below)), part
    )
    low, high = quartile[..., :1], quartile[..., 1:]
    return torch.cat([low, high, high + factor * (high - low)], -1)


def attention_over_patches(attention: Tensor, valid: Tensor) -> Tensor:
    """Float32 `[T, N]`: attention as a distribution over the valid patches of each tile.

    The CLS column is gone and padding with it, so each row is divided by its sum.
    """
    kept = attention.float().masked_fill(~valid, 0)
    return kept / kept.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def any_of_cell(
    count: Tensor, ranking: Tensor, grid: tuple[int, int], cell: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """From patches to the tokens that are made of them: a token stays when any of its patches does.

    DocOwl1.5's H-Reducer makes one token of 1 x 4 patches, and the method stands in front of it
    [how both go together is this project's choice; the paper does not say].

    Args:
        count: int64 `[T]`, patches that stay.
        ranking: int64 `[T, P]`, patches by rank, those that stay in front.
        grid: `(rows, cols)` of the tokens.
        cell: `(rows, cols)` of the patches of a token, `P == rows * cols` of both together.

    Returns:
        int64 `[T]` tokens that stay, and int64 `[T, N]` tokens by the rank of their best patch.
    """
    (rows, cols), (down, across) = grid, cell
    rank = ranking.argsort(1).view(-1, rows, down, cols, across)
    best = rank.amin((2, 4)).flatten(1)
    return (best < count[:, None]).sum(1), best.argsort(1)
