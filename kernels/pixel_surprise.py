"""Predicting the pixels of each token from the tokens before it: what is predicted need not be seen.

Source: PixelPrune (arXiv 2604.00886), from its description.

Bytes: reads all pixels once and writes 4 bytes a token; a token's three neighbours are in the cache.
A rebuilt token has the pixels of some token before it, so that the kernel keeps an index for each and
copies no pixels. With a tau above 0 diagonals follow each other: the twin is some thirty launches a
diagonal, the kernel one launch, a tile a program. At tau 0 a diagonal is a program.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.kernels._dispatch import Kernel, opaque, register, use_triton, widened
from vtc.kernels._rows import load_rows

if TYPE_CHECKING:
    import triton.language as tl


def pixel_surprise(
    pixels: Tensor, valid: Tensor, grid: tuple[int, int], tau: float = 0.0
) -> Tensor:
    """How far the pixels of each token are from what its neighbours predict: the largest difference.

    The prediction is the token above, where those at the left and above it are alike (so that something
    begins at the left of it); otherwise the one at the left. A patch without one of these has the other,
    one without both has none. With a tau above 0 neighbours count as they would be rebuilt: a token that
    is off by no more than tau has its prediction's pixels, so that errors do not add up.

    Args:
        pixels: `[T, N, values]`, from 0 to 1; compared in float32 (float64 stays).
        valid: bool `[T, N]`; others predict nothing.
        grid: `(rows, cols)`, N together.
        tau: up to which difference pixels are alike.

    Returns:
        `[T, N]`, float32 (or float64), infinite where nothing predicts.
    """
    pixels = pixels.detach()
    if use_triton(pixels):
        return torch.ops.vtc.pixel_surprise(pixels, valid, *grid, tau)
    return pixel_surprise_torch(pixels, valid, grid, tau)


def pixel_surprise_torch(
    pixels: Tensor, valid: Tensor, grid: tuple[int, int], tau: float = 0.0
) -> Tensor:
    """The PyTorch twin."""
    if tau > 0:
        return _rebuilt_torch(pixels, valid, *grid, tau)
    return _surprise(pixels, valid, *grid)


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


def _surprise(pixels: Tensor, valid: Tensor, rows: int, cols: int) -> Tensor:
    """The twin at tau 0: all tokens at once."""
    around, there = _bordered(widened(pixels), valid, rows, cols)
    y, x = (torch.arange(1, extent + 1, device=pixels.device) for extent in (rows, cols))
    return _off(around, there, y[:, None], x, 0.0)[0].flatten(1)


def _surprise_of_rebuilt(pixels: Tensor, valid: Tensor, rows: int, cols: int, tau: float) -> Tensor:
    """The twin with rebuilt neighbours: `rows + cols - 1` steps, each a diagonal."""
    rebuilt, there = _bordered(widened(pixels), valid, rows, cols)
    out = rebuilt.new_empty(len(pixels), rows, cols)
    for diagonal in range(rows + cols - 1):
        first, last = max(0, diagonal - cols + 1), min(rows, diagonal + 1)
        y = torch.arange(first + 1, last + 1, device=pixels.device)
        x = diagonal + 2 - y
        off, prediction = _off(rebuilt, there, y, x, tau)
        out[:, y - 1, x - 1] = off
        rebuilt[:, y, x] = torch.where((off <= tau)[..., None], prediction, rebuilt[:, y, x])
    return out.flatten(1)


@Kernel
def _follow_diagonals(
    pixels, valid, origin, out, rows, cols, units, tau,
    UNIT: tl.constexpr, REBUILT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Diagonals of a tile, in order or one a program; `origin` says whose pixels a token has."""
    t, values = tl.program_id(0).to(tl.int64), units * UNIT
    own, there = t * rows * cols, valid + t * rows * cols
    whose, first_pixel = origin + own, pixels + own * values
    for d in range(tl.program_id(1), rows + cols - 1, tl.num_programs(1)):
        end = tl.minimum(rows, d + 1)
        for start in range(tl.maximum(0, d - cols + 1), end, BLOCK_T):
            y = start + tl.arange(0, BLOCK_T)
            x = d - y
            inside = y < end
            here = y * cols + x
            has_left = tl.load(there + here - 1, mask=inside & (x > 0), other=0) != 0
            has_above = tl.load(there + here - cols, mask=inside & (y > 0), other=0) != 0
            has_corner = has_left & has_above  # others are never asked for
            has_corner &= tl.load(there + here - cols - 1, mask=has_corner, other=0) != 0
            left, above, corner = here - 1, here - cols, here - cols - 1
            if REBUILT:
                left = tl.load(whose + left, mask=has_left, other=0)
                above = tl.load(whose + above, mask=has_above, other=0)
                corner = tl.load(whose + corner, mask=has_corner, other=0)
            off_left = tl.zeros([BLOCK_T], dtype=tl.float32)
            off_above, turn_left, turn_above = off_left, off_left, off_left
            for begin in range(0, values, BLOCK_V):
                c = begin + tl.arange(0, BLOCK_V)
                p = load_rows(first_pixel + here.to(tl.int64) * values, inside, c, values, True)
                q = load_rows(first_pixel + left.to(tl.int64) * values, has_left, c, values, True)
                r = load_rows(first_pixel + above.to(tl.int64) * values, has_above, c, values, True)
                u = load_rows(
                    first_pixel + corner.to(tl.int64) * values, has_corner, c, values, True
                )
                off_left = tl.maximum(off_left, tl.max(tl.abs(p - q), 1))
                off_above = tl.maximum(off_above, tl.max(tl.abs(p - r), 1))
                turn_left = tl.maximum(turn_left, tl.max(tl.abs(u - q), 1))
                turn_above = tl.maximum(turn_above, tl.max(tl.abs(u - r), 1))
            turn = has_corner & (turn_left <= tau) & (turn_above > tau)
            by_above = has_above & (turn | (has_left == 0))
            off = tl.where(by_above, off_above, off_left)
            off = tl.where(has_left | has_above, off, float("inf"))
            tl.store(out + own + here, off, mask=inside)
            if REBUILT:
                source = tl.where(by_above, above, left)
                tl.store(whose + here, tl.where(off <= tau, source, here), mask=inside)
        if REBUILT:
            tl.debug_barrier()  # the next diagonal reads what other threads wrote


def launch(pixels: Tensor, valid: Tensor, rows: int, cols: int, tau: float) -> Tensor:
    """The Triton path: 1 launch."""
    pixels, out = pixels.contiguous(), fake(pixels, valid, rows, cols, tau)
    tiles, patches, values = pixels.shape
    rebuilt, unit = tau > 0, math.gcd(values, 8)  # rows begin at multiples of so many numbers
    origin = valid.new_empty(valid.shape if rebuilt else (1,), dtype=torch.int32)
    _follow_diagonals[(tiles if patches else 0, 1 if rebuilt else rows + cols - 1)](
        pixels, valid.contiguous(), origin, out, rows, cols, values // unit, float(tau),
        UNIT=unit, REBUILT=rebuilt, BLOCK_T=32, BLOCK_V=64, num_warps=8 if rebuilt else 4,
    )  # fmt: skip
    return out


def fake(pixels: Tensor, valid: Tensor, rows: int, cols: int, tau: float) -> Tensor:
    """The result not yet filled."""
    wide = torch.float64 if pixels.dtype == torch.float64 else torch.float32
    return pixels.new_empty(valid.shape, dtype=wide)


_SCHEMA = "(Tensor pixels, Tensor valid, SymInt rows, SymInt cols, float tau) -> Tensor"
register("pixel_surprise", _SCHEMA, launch, fake)
_rebuilt_torch = opaque("pixel_surprise_torch", _SCHEMA, _surprise_of_rebuilt, fake)
