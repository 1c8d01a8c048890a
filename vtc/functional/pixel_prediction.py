"""Predicting the pixels of each token from the tokens before it: what is predicted need not be seen.

Source: PixelPrune (arXiv 2604.00886), from its description. T tiles, N patches a tile of `(rows, cols)`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.kernels._dispatch import register


def surprise(pixels: Tensor, valid: Tensor, grid: tuple[int, int], tau: float = 0.0) -> Tensor:
    """How far the pixels of each token are from what its neighbours predict: the largest difference.

    The prediction is the token above, where those at the left and above it are alike (so that something
    begins at the left of it); otherwise the one at the left. A patch without one of these has the other,
    one without both has none. With a tau above 0 neighbours count as they would be rebuilt: a token that
    is off by no more than tau has its prediction's pixels, so that errors do not add up.

    Args:
        pixels: `[T, N, values]`, from 0 to 1.
        valid: bool `[T, N]`; others predict nothing.
        grid: `(rows, cols)`.
        tau: up to which difference pixels are alike.

    Returns:
        float32 `[T, N]`, infinite where nothing predicts.
    """
    pixels = pixels.float()
    if tau > 0:
        return torch.ops.vtc.pixel_surprise(pixels, valid, *grid, tau)
    around, there = _bordered(pixels, valid, *grid)
    y, x = (torch.arange(1, extent + 1, device=pixels.device) for extent in grid)
    return _off(around, there, y[:, None], x, 0.0)[0].flatten(1)


def _bordered(pixels: Tensor, valid: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """`[T, rows + 1, cols + 1, ..]` with a border above and at the left that holds nothing."""
    grid = pixels.unflatten(1, (rows, cols))
    return pad(grid, (0, 0, 1, 0, 1, 0)), pad(valid.unflatten(1, (rows, cols)), (1, 0, 1, 0))


def _off(around: Tensor, there: Tensor, y: Tensor, x: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """How far the tokens at `(y, x)` of a bordered grid are from their prediction, and that."""
    places = ((y, x - 1), (y - 1, x), (y - 1, x - 1))
    left, above, corner = (around[:, a, b] for a, b in places)
    has_left, has_above, has_corner = (there[:, a, b] for a, b in places)
    like_left = (corner - left).abs().amax(-1) <= tau
    like_above = (corner - above).abs().amax(-1) <= tau
    turn = has_left & has_corner & like_left & ~like_above
    by_above = has_above & (turn | ~has_left)
    prediction = torch.where(by_above[..., None], above, left)
    off = (around[:, y, x] - prediction).abs().amax(-1)
    return off.masked_fill(~(has_left | has_above), torch.inf), prediction


def _surprise_of_rebuilt(pixels: Tensor, valid: Tensor, rows: int, cols: int, tau: float) -> Tensor:
    """`surprise` with rebuilt neighbours: one operation of `rows + cols - 1` steps, each a diagonal."""
    rebuilt, there = _bordered(pixels, valid, rows, cols)
    out = pixels.new_empty(len(pixels), rows, cols)
    for diagonal in range(rows + cols - 1):
        first, last = max(0, diagonal - cols + 1), min(rows, diagonal + 1)
        y = torch.arange(first + 1, last + 1, device=pixels.device)
        x = diagonal + 2 - y
        off, prediction = _off(rebuilt, there, y, x, tau)
        out[:, y - 1, x - 1] = off
        rebuilt[:, y, x] = torch.where((off <= tau)[..., None], prediction, rebuilt[:, y, x])
    return out.flatten(1)


register(
    "pixel_surprise",
    "(Tensor pixels, Tensor valid, SymInt rows, SymInt cols, float tau) -> Tensor",
    _surprise_of_rebuilt,
    lambda pixels, valid, rows, cols, tau: pixels.new_empty(valid.shape),
)
