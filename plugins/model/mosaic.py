"""How the crops of an image are arranged, found by comparing them with its thumbnail."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

#: height and width of the pictures that are compared, at most
_SIDE = 96


def arrangement(crops: Tensor, thumbnail: Tensor) -> tuple[int, int]:
    """`(rows, cols)` of the crops.

    Every arrangement of n crops is put together at low resolution; the one nearest to the thumbnail
    (mean squared difference) is taken, of equals the one with fewer rows.

    Args:
        crops: `[n, 3, h, w]`, row-major.
        thumbnail: `[3, h, w]`, the whole image, stretched.
    """
    count = len(crops)
    options = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    return min(options, key=lambda option: _difference(crops, thumbnail, option))


@torch.no_grad()
def _difference(crops: Tensor, thumbnail: Tensor, grid: tuple[int, int]) -> float:
    rows, cols = grid
    high = max(min(_SIDE, thumbnail.shape[1]) // rows, 1)
    wide = max(min(_SIDE, thumbnail.shape[2]) // cols, 1)
    small = adaptive_avg_pool2d(crops.float(), (high, wide))
    canvas = small.unflatten(0, (rows, cols)).permute(2, 0, 3, 1, 4)
    canvas = canvas.reshape(-1, rows * high, cols * wide)
    whole = adaptive_avg_pool2d(thumbnail.float(), canvas.shape[1:])
    return float((canvas - whole).square().mean())
