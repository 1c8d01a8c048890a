"""Average pooling of every tile to a small grid, with padding left out."""

from __future__ import annotations

import torch
from torch import Tensor


def pool_bounds(extent: int, bins: int) -> tuple[Tensor, Tensor]:
    """First and one-past-last line of each bin, int64 `[bins]` each.

    Bin i covers `floor(i * extent / bins)` to `ceil((i + 1) * extent / bins)`, as PyTorch's
    adaptive pooling does: bins overlap where `extent` is no multiple of `bins`.
    """
    i = torch.arange(bins)
    return i * extent // bins, -(-(i + 1) * extent // bins)


def pool_membership(extent: int, bins: int) -> Tensor:
    """Bool `[bins, extent]`: the lines that each bin covers."""
    first, last = pool_bounds(extent, bins)
    line = torch.arange(extent)
    return (line >= first[:, None]) & (line < last[:, None])


def adaptive_pool(
    features: Tensor,
    patch_grid: tuple[int, int],
    bins: tuple[int, int],
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean of the valid patches in each bin.

    Two small matrix products, one an axis; without padding the result is that of
    `torch.nn.functional.adaptive_avg_pool2d`.

    Args:
        features: `[T, N, C]`; sums run in float32 (float64 stays).
        patch_grid: `(rows, cols)` of a tile, `rows * cols == N`.
        bins: `(rows, cols)` of the result.
        valid: bool `[T, N]`, patches that count; None for all.

    Returns:
        `pooled`, `[T, bins, C]` row-major, in the dtype of `features`, zero where a bin holds no
        valid patch; and `count`, float `[T, bins]`, the valid patches in each bin.

    Bytes: reads TNC, writes T * bins * C elements; holds T * bins_rows * cols * C float32.
    """
    tiles, patches, width = features.shape
    wide = features if features.dtype.itemsize > 4 else features.float()
    rows = pool_membership(patch_grid[0], bins[0]).to(wide)
    cols = pool_membership(patch_grid[1], bins[1]).to(wide)
    mask = wide.new_ones(tiles, patches) if valid is None else valid.to(wide)
    grid = (wide * mask[..., None]).view(tiles, *patch_grid, width)
    sums = torch.einsum("ih,thwc,jw->tijc", rows, grid, cols).flatten(1, 2)
    count = torch.einsum("ih,thw,jw->tij", rows, mask.view(tiles, *patch_grid), cols).flatten(1)
    pooled = sums / count.clamp(min=1)[..., None]
    return pooled.to(features.dtype), count
