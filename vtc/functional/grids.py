"""Rectangles of patches, and grids of bins over them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vtc.errors import VTCError


def valid_rectangles(valid: Tensor, patch_grid: tuple[int, int]) -> Tensor:
    """The rectangle `(top, bottom, left, right)` of valid patches of each tile, half-open, `[T, 4]`.

    Un-padding cuts a rectangle out of the canvas, so that what is left of a tile is one too; a tile
    without valid patches gives zeros.

    Args:
        valid: bool `[T, N]`, CPU.
        patch_grid: `(rows, cols)` of a tile.

    Raises:
        VTCError: the valid patches of a tile are no rectangle.
    """
    mask = valid.view(-1, *patch_grid).int()
    rows, cols = mask.amax(2), mask.amax(1)
    top, left = rows.argmax(1), cols.argmax(1)
    bottom, right = top + rows.sum(1), left + cols.sum(1)
    empty = rows.sum(1) == 0
    low, high = rows.flip(1).argmax(1), cols.flip(1).argmax(1)
    gaps = (mask.shape[1] - low != bottom) | (mask.shape[2] - high != right)
    if bool((gaps & ~empty).any()):
        raise VTCError(
            "image_size: the model scales this image's canvas down, or the prompt's mask hides a part "
            "of it, so that its patches are no rectangle"
        )
    return torch.stack([top, bottom, left, right], 1).masked_fill(empty[:, None], 0)


def even_bins(
    valid: Tensor, patch_grid: tuple[int, int], count: Tensor, ragged: bool = False
) -> tuple[Tensor, Tensor]:
    """`count[t]` disjoint bins that cover the valid patches of each tile as evenly as possible.

    The valid patches are the crossings of some rows and some columns, which need not be neighbours
    (where a model scales its canvas down, every so many lines are left). The rows are cut into bands,
    about as many as make the bins square, and each band into bins of columns; where the count has
    no matching factors, bands differ by one bin.

    Args:
        valid: bool `[T, N]`.
        patch_grid: `(rows, cols)` of a tile.
        count: int64 `[T]` on the same device, from 0 to the tile's valid patches.
        ragged: whether a tile's valid patches may be no such crossings (a mask hides some of them); such
            tiles are cut in reading order.

    Returns:
        `bins`, int64 `[T, N]`: the bin of each valid patch, row-major; and `centre`, bool `[T, N]`:
        the one patch in the middle of each bin, none in tiles with `count` 0.
    """
    grid = valid.unflatten(1, patch_grid)
    row_used, col_used = grid.any(2), grid.any(1)
    row = (row_used.cumsum(1) - 1)[:, :, None]  # [T, rows, 1]: place among the rows that are left
    col = (col_used.cumsum(1) - 1)[:, None, :]
    height, width, n = (
        x.clamp(min=1)[:, None, None] for x in (row_used.sum(1), col_used.sum(1), count)
    )
    bands = torch.round(torch.sqrt(n * height / width)).long()
    bands = torch.maximum(bands, -(-n // width)).clamp(min=1)
    bands = torch.minimum(bands, torch.minimum(height, n))

    band = ((row + 1) * bands - 1) // height  # the i with floor(i*h/bands) <= row < floor((i+1)...)
    first = band * n // bands  # first bin of the band
    inside = ((band + 1) * n // bands - first).clamp(min=1)  # bins in it
    nth = ((col + 1) * inside - 1) // width
    middle_row = (band * height // bands + (band + 1) * height // bands - 1) // 2
    middle_col = (nth * width // inside + (nth + 1) * width // inside - 1) // 2
    centre = (row == middle_row) & (col == middle_col) & grid & (count > 0)[:, None, None]
    bins, centre = (first + nth).flatten(1), centre.flatten(1)
    if ragged:
        odd = (grid != row_used[:, :, None] & col_used[:, None, :]).flatten(1).any(1, keepdim=True)
        rank, many = valid.cumsum(1) - 1, valid.sum(1, keepdim=True).clamp(min=1)
        n = count[:, None].clamp(min=1)
        nth = ((rank + 1) * n - 1) // many
        middle = (nth * many // n + (nth + 1) * many // n - 1) // 2
        bins = torch.where(odd, nth, bins)
        centre = torch.where(odd, (rank == middle) & valid & (count > 0)[:, None], centre)
    return bins, centre


def pooled_axis(
    extent: int, bins: Tensor, most: int, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Which bins of an adaptively pooled axis hold something, and the lines they hold.

    Args:
        extent: lines of the axis.
        bins: int64 `[...]`, bins over it, at most `extent`; bounds are those of `adaptive_pool`.
        most: the largest of `bins`.
        low, high: int64 `[...]`, the lines that are not padding, half-open.

    Returns:
        `used`, bool `[..., most]`: bins with a line in `low..high`; of bins that overlap and are cut
        down to the same middle line, the first. `first`, `last`, int64: what each of them covers,
        half-open; the middle line, `(first + last - 1) // 2`, stands for it.
    """
    bins, low, high = (x[..., None] for x in (bins, low, high))
    i = torch.arange(most, device=bins.device)
    first = torch.maximum(i * extent // bins, low)
    last = torch.minimum(-(-(i + 1) * extent // bins), high)
    used = (last > first) & (i < bins)
    middle = (first + last - 1) // 2
    again = (middle[..., 1:] == middle[..., :-1]) & used[..., :-1]
    used = used & ~torch.nn.functional.pad(again, (1, 0))
    return used, first, last


@lru_cache(maxsize=512)
def squared_padding(
    patch_grid: tuple[int, int], image_size: tuple[int, int] | None, patch: int = 14
) -> Tensor:
    """Bool `[N]`, CPU: patches wholly in the padding of an image that was padded to a square.

    Args:
        patch_grid: `(rows, cols)` of a tile.
        image_size: `(height, width)` of the image; None for no padding.
        patch: pixels of a patch's side.
    """
    outside = torch.zeros(patch_grid, dtype=torch.bool)
    if image_size is not None:
        axis = 0 if image_size[0] < image_size[1] else 1
        lines = outside if axis == 0 else outside.T
        side = patch * len(lines)
        shown = round(side * min(image_size) / max(image_size))
        top = (side - shown) // 2
        lines[: top // patch] = True
        lines[len(lines) - (side - shown - top) // patch :] = True
    return outside.flatten()
