"""Average pooling of every tile to a small grid, with padding left out.

Bytes: reads TNC elements and writes T * bins * C, which is the floor; bins that overlap read their
common lines twice, from the cache as a rule. The gradient is the same kernel with both grids exchanged:
line r of R lies in the bins that bin r of R would cover on a grid of bins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.kernels._dispatch import Kernel, register, use_triton, widened
from vtc.kernels._rows import load_rows

if TYPE_CHECKING:
    import triton.language as tl


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

    Without padding the result is that of `torch.nn.functional.adaptive_avg_pool2d`.

    Args:
        features: `[T, N, C]`; sums run in float32 (float64 stays).
        patch_grid: `(rows, cols)` of a tile, `rows * cols == N`.
        bins: `(rows, cols)` of the result.
        valid: bool `[T, N]`, patches that count, whatever the others hold; None for all.

    Returns:
        `pooled`, `[T, bins, C]` row-major, in the dtype of `features`, zero where a bin holds no
        valid patch; and `count`, float `[T, bins]`, the valid patches in each bin. Gradients flow to
        `features`.

    Raises:
        VTCError: the grid has another number of patches than `features` or `valid`.
    """
    if patch_grid[0] * patch_grid[1] != features.shape[1]:
        raise VTCError(
            f"patch_grid: got {tuple(patch_grid)}, but features have {features.shape[1]} patches"
        )
    if valid is not None and valid.shape != features.shape[:2]:
        raise VTCError(f"valid: got shape {tuple(valid.shape)}, need {tuple(features.shape[:2])}")
    if use_triton(features):
        return torch.ops.vtc.adaptive_pool(features, *patch_grid, *bins, valid)
    return adaptive_pool_torch(features, patch_grid, bins, valid)


def adaptive_pool_torch(
    features: Tensor,
    patch_grid: tuple[int, int],
    bins: tuple[int, int],
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The PyTorch twin: two small matrix products, one an axis."""
    tiles, patches, width = features.shape
    wide = widened(features)
    rows = pool_membership(patch_grid[0], bins[0]).to(wide.device, wide.dtype, non_blocking=True)
    cols = pool_membership(patch_grid[1], bins[1]).to(wide.device, wide.dtype, non_blocking=True)
    mask = wide.new_ones(tiles, patches) if valid is None else valid.to(wide)
    counted = wide if valid is None else wide.masked_fill(~valid[..., None], 0)
    grid = counted.view(tiles, *patch_grid, width)
    sums = torch.einsum("ih,thwc,jw->tijc", rows, grid, cols).flatten(1, 2)
    count = torch.einsum("ih,thw,jw->tij", rows, mask.view(tiles, *patch_grid), cols).flatten(1)
    pooled = sums / count.clamp(min=1)[..., None]
    return pooled.to(features.dtype), count


@Kernel
def _window_sums(
    values, weight, scale, out, total, rows, cols, out_rows, out_cols, width, values_t, values_n,
    weight_t, weight_n,
    WEIGHTED: tl.constexpr, MEAN: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One cell of the result: the weighted sum, or mean, of the cells in its window."""
    t = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1)
    i, j = o // out_cols, o % out_cols
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    top, bottom = i * rows // out_rows, ((i + 1) * rows + out_rows - 1) // out_rows
    left, right = j * cols // out_cols, ((j + 1) * cols + out_cols - 1) // out_cols
    size = (bottom - top) * (right - left)
    sums = tl.zeros([BLOCK_C], dtype=tl.float32)
    mass = tl.zeros([BLOCK_E], dtype=tl.float32)
    for start in range(0, size, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        n = (top + e // (right - left)) * cols + left + e % (right - left)
        share = (e < size).to(tl.float32)
        if WEIGHTED:
            share = tl.load(weight + t * weight_t + n * weight_n, mask=e < size, other=0)
            share = share.to(tl.float32)
        x = load_rows(values + t * values_t + n * values_n, e < size, c, width, True)
        # cells without weight may be NaN
        sums += tl.sum(tl.where(share[:, None] != 0, x * share[:, None], 0.0), 0)
        mass += share
    place = t * out_rows * out_cols + o
    if MEAN:
        count = tl.sum(mass, 0)
        sums = sums / tl.maximum(count, 1.0)
        if tl.program_id(2) == 0:
            tl.store(total + place, count)
    if SCALED:
        factor = tl.load(scale + place).to(tl.float32)
        sums = tl.where(factor != 0, sums * factor, 0.0)
    tl.store(out + place * width + c, sums, mask=c < width)


def _launch_windows(
    values: Tensor,
    grid: tuple[int, int],
    bins: tuple[int, int],
    weight: Tensor | None,
    out: Tensor,
    total: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    values = values if values.stride(-1) == 1 else values.contiguous()
    width, block = values.shape[2], 256
    _window_sums[(values.shape[0], bins[0] * bins[1], -(-width // block))](
        values, weight, scale, out, total, *grid, *bins, width, *values.stride()[:2],
        *(weight.stride() if weight is not None else (0, 0)),
        WEIGHTED=weight is not None, MEAN=total is not None, SCALED=scale is not None,
        BLOCK_E=16, BLOCK_C=block, num_warps=4,
    )  # fmt: skip


def launch(
    features: Tensor, rows: int, cols: int, bin_rows: int, bin_cols: int, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The Triton path: 1 launch."""
    pooled, count = fake(features, rows, cols, bin_rows, bin_cols, valid)
    _launch_windows(features, (rows, cols), (bin_rows, bin_cols), valid, pooled, total=count)
    return pooled, count


def fake(
    features: Tensor, rows: int, cols: int, bin_rows: int, bin_cols: int, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Results not yet filled."""
    tiles, _, width = features.shape
    count = features.new_empty(tiles, bin_rows * bin_cols, dtype=torch.float32)
    return features.new_empty(tiles, bin_rows * bin_cols, width), count


def launch_backward(
    gradient: Tensor,
    count: Tensor,
    rows: int,
    cols: int,
    bin_rows: int,
    bin_cols: int,
    valid: Tensor | None,
) -> Tensor:
    """The gradient of the features: 3 launches (two for the shares of the bins)."""
    out = fake_backward(gradient, count, rows, cols, bin_rows, bin_cols, valid)
    share = count.clamp(min=1).reciprocal()
    scale = valid if valid is None else valid.contiguous()
    _launch_windows(gradient, (bin_rows, bin_cols), (rows, cols), share, out, scale=scale)
    return out


def fake_backward(
    gradient: Tensor,
    count: Tensor,
    rows: int,
    cols: int,
    bin_rows: int,
    bin_cols: int,
    valid: Tensor | None,
) -> Tensor:
    """The gradient not yet filled."""
    return gradient.new_empty(gradient.shape[0], rows * cols, gradient.shape[2])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.grids = inputs[1:5]
    ctx.save_for_backward(output[1], *([] if inputs[5] is None else inputs[5:]))


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    count, *valid = ctx.saved_tensors
    found = torch.ops.vtc.adaptive_pool_backward(
        gradient, count, *ctx.grids, valid[0] if valid else None
    )
    return found, None, None, None, None, None


_GRIDS = "SymInt rows, SymInt cols, SymInt bin_rows, SymInt bin_cols, Tensor? valid"
register(
    "adaptive_pool",
    f"(Tensor features, {_GRIDS}) -> (Tensor, Tensor)",
    launch,
    fake,
    gradient=(_setup, _backward),
)
register(
    "adaptive_pool_backward",
    f"(Tensor gradient, Tensor count, {_GRIDS}) -> Tensor",
    launch_backward,
    fake_backward,
)
