"""Rectangles of patches, and grids of bins over them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vtc.errors import VTCError


def valid_rectangles(valid: Tensor, patch_grid: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """The rectangle `(top, bottom, left, right)` of valid patches of each tile, half-open.

    Un-padding cuts a rectangle out of the canvas, so that what is left of a tile is one too; a tile
    without valid patches gives `(0, 0, 0, 0)`.

    Args:
        valid: bool `[T, N]`.
        patch_grid: `(rows, cols)` of a tile.

    Raises:
        VTCError: the valid patches of a tile are no rectangle.
    """
    mask = valid.view(-1, *patch_grid).int()
    rows, cols = mask.amax(2), mask.amax(1)
    top, left = rows.argmax(1), cols.argmax(1)
    bottom, right = top + rows.sum(1), left + cols.sum(1)
    empty = rows.sum(1) == 0
    corners = torch.stack([top, bottom, left, right], 1).masked_fill(empty[:, None], 0)
    low, high = rows.flip(1).argmax(1), cols.flip(1).argmax(1)
    gaps = (mask.shape[1] - low != bottom) | (mask.shape[2] - high != right)
    if bool((gaps & ~empty).any()):
        raise VTCError(
            "image_size: the model scales this image's canvas down, so that its patches are no "
            "rectangle; methods 'pool' and 'uniform' can work on it"
        )
    return [tuple(corner) for corner in corners.tolist()]


def valid_lines(valid: Tensor, patch_grid: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    """The rows and the columns, int64, whose crossings are the valid patches of each tile.

    They need not be neighbours: where a model scales its canvas down, every so many lines are left.

    Args:
        valid: bool `[T, N]`.
        patch_grid: `(rows, cols)` of a tile.
    """
    mask = valid.view(-1, *patch_grid)
    return [(tile.any(1).nonzero().squeeze(1), tile.any(0).nonzero().squeeze(1)) for tile in mask]


def even_grid(height: int, width: int, count: int) -> tuple[Tensor, Tensor]:
    """Exactly `count` disjoint bins that cover a rectangle as evenly as possible.

    The rectangle is cut into bands of rows, about as many as make the bins square, and each band
    into bins of columns; where `count` has no matching factors, bands differ by one bin.

    Args:
        height, width: of the rectangle, in patches.
        count: bins, between 1 and `height * width`.

    Returns:
        `bins`, int64 `[height, width]`: the bin of each patch, row-major; and `centre`, int64
        `[count]`: the patch in the middle of each bin, as `row * width + col`, ascending within a
        band; centres are distinct.

    Raises:
        VTCError: `count` does not fit the rectangle.
    """
    if not 1 <= count <= height * width:
        raise VTCError(f"count: got {count}, allowed are 1 to {height * width}")
    bands = round(math.sqrt(count * height / width))
    bands = min(max(bands, -(-count // width), 1), height, count)

    row, col = torch.arange(height)[:, None], torch.arange(width)[None, :]
    band = ((row + 1) * bands - 1) // height  # the i with floor(i*h/bands) <= row < floor((i+1)...)
    first = torch.arange(bands + 1) * count // bands  # first bin of each band
    inside = (first[1:] - first[:-1])[band]  # bins in the band of this row
    bins = first[band] + ((col + 1) * inside - 1) // width

    index = torch.arange(count)
    band = torch.searchsorted(first, index, right=True) - 1
    inside, nth = (first[1:] - first[:-1])[band], index - first[band]
    centre_row = (band * height // bands + (band + 1) * height // bands - 1) // 2
    centre_col = (nth * width // inside + (nth + 1) * width // inside - 1) // 2
    return bins, centre_row * width + centre_col


def pooled_axis(extent: int, bins: int, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Which bins of an adaptively pooled axis hold something, and the line that stands for each.

    Args:
        extent: lines of the axis.
        bins: bins over it, at most `extent`; their bounds are those of `adaptive_pool`.
        low, high: the lines that are not padding, half-open.

    Returns:
        `used`, int64: bins with a line in `low..high`; of bins that overlap and are cut down to the
        same line, the first. `centre`, int64: the middle of what each of them covers, ascending.
    """
    i = torch.arange(bins)
    first = (i * extent // bins).clamp(min=low)
    last = (-(-(i + 1) * extent // bins)).clamp(max=high)
    centre = (first + last - 1) // 2
    used = last > first
    used[1:] &= (centre[1:] != centre[:-1]) | ~used[:-1]
    return i[used], centre[used]
