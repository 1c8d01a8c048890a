"""The maths of GlobalCom2: crop budgets from the thumbnail, and scores of the crops' patches.

Source: Liu et al., "Global Compression Commander" (arXiv 2501.05179), read from the official code
for LLaVA-NeXT. B images of up to T tiles, of which tile 0 is the thumbnail; n = T - 1 crops; N
patches a tile. Images with fewer crops have rows without valid patches behind their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.functional.anyres import canvas_provenance
from vtc.functional.budget import apportion
from vtc.functional.ragged import to_device, to_host
from vtc.kernels.segmented_topk import segmented_topk
from vtc.packing import Geometry, tables


def crop_of_patch(patch_grid: tuple[int, int], crops: tuple[int, int]) -> Tensor:
    """Int64 `[N]`: the crop (0.., row-major) that each thumbnail patch is counted for.

    The thumbnail is divided evenly, remainders go to the last row and column of crops. Padding of
    the crops is not considered: exact for 2 x 2, a little off for three crops in a line.
    """
    rows, cols = patch_grid
    high, wide = max(rows // crops[0], 1), max(cols // crops[1], 1)
    row = (torch.arange(rows) // high).clamp(max=crops[0] - 1)
    col = (torch.arange(cols) // wide).clamp(max=crops[1] - 1)
    return (row[:, None] * crops[1] + col).flatten()


@dataclass(frozen=True, eq=False)
class CropTables:
    """How the crops of a batch lie on their thumbnails; from the images' shapes alone.

    Attributes:
        share: bool `[B, n, N]`, CPU: the thumbnail patches that are counted for each crop.
        real: bool `[B, n]`, CPU: crops that are there.
        available: int64 `[B, T]`, CPU: valid patches of each tile.
        corner: int64 `[B, n, N, 2, 2]`, thumbnail patches that each crop patch is interpolated from.
        down: float32 `[B, n, N, 2]`, weights of their rows, 0 on padding.
        across: float32 `[B, n, N, 2]`, weights of their columns.
        valid: bool `[B, T, N]`.
    """

    share: Tensor
    real: Tensor
    available: Tensor
    corner: Tensor
    down: Tensor
    across: Tensor
    valid: Tensor


def crop_tables(shapes: Sequence[Geometry], device: torch.device) -> CropTables:
    """The tables of images of these shapes; kept, since calls repeat them.

    Args:
        shapes: of images with crops.
        device: where the last four attributes are wanted.
    """
    return _crop_tables(tuple(shapes), device)


@lru_cache(maxsize=16)
def _crop_tables(shapes: tuple[Geometry, ...], device: torch.device) -> CropTables:
    with tables():
        tiles = torch.tensor([shape.tiles for shape in shapes])
        column = torch.arange(int(tiles.max()))
        here = column < tiles[:, None]
        slot = (tiles.cumsum(0) - tiles)[:, None] + column * here  # padding: the thumbnail again
        parts = zip(*(_image_tables(shape) for shape in shapes), strict=True)
        share, corner, down, across = (torch.cat(part)[slot[:, 1:]] for part in parts)
        valid = torch.cat([shape.valid for shape in shapes])[slot] & here[..., None]
        moved = (x.to(device, non_blocking=True) for x in (corner, down, across, valid))
        return CropTables(share, here[:, 1:], valid.sum(-1), *moved)


@lru_cache(maxsize=512)
def _image_tables(shape: Geometry) -> tuple[Tensor, ...]:
    """`share`, `corner`, `down` and `across` of one image; zeros for its thumbnail in front."""
    crops, (rows, cols) = shape.tile_grid or (0, 0), shape.patch_grid
    tiles, patches = shape.tiles, rows * cols
    share = 1 + crop_of_patch(shape.patch_grid, crops) == torch.arange(tiles)[:, None]
    corner = torch.zeros(tiles, patches, 2, 2, dtype=torch.int64)
    down, across = torch.zeros(2, tiles, patches, 2).unbind()
    top, bottom, left, right = shape.region
    if bottom > top and right > left:
        here = tuple(x[top:bottom, left:right] for x in canvas_provenance((rows, cols), crops))
        line, down_part = linear_weights(rows, bottom - top)
        column, across_part = linear_weights(cols, right - left)
        corner[here] = line[:, None, :, None] * cols + column[None, :, None, :]
        down[here], across[here] = down_part[:, None], across_part[None]
    return share, corner, down, across


def linear_weights(size: int, wanted: int) -> tuple[Tensor, Tensor]:
    """Linear interpolation of `size` values to `wanted`, half-pixel centres, no antialiasing.

    Returns:
        int64 `[wanted, 2]`, the two values each is made of, and their float32 weights.
    """
    at = ((torch.arange(wanted) + 0.5) * (size / wanted) - 0.5).clamp(min=0)
    low = at.long()
    part = at - low
    return torch.stack([low, (low + 1).clamp(max=size - 1)], -1), torch.stack([1 - part, part], -1)


def crop_ratios(
    thumbnail: Tensor,
    share: Tensor,
    retention: Tensor | float,
    tau: float = 10.0,
    eps: float = 1e-8,
    real: Tensor | None = None,
) -> Tensor:
    """Retention of each crop, float64 `[..., n]`: a softmax over the crops' summed scores.

    `r_j = min(R * (1 + sigma_j - mean(sigma)), 1)`. Float64 throughout: when the softmax saturates,
    `n_j * r_j` comes within 1e-7 of a whole number and float32 changes its floor.

    Args:
        thumbnail: `[..., N]`, CPU, scores of the thumbnail's patches.
        share: bool `[..., n, N]`, the patches counted for each crop.
        retention: R, `[...]`.
        tau: temperature of the softmax.
        eps: added to its denominator.
        real: bool `[..., n]`, crops that are there; None for all.
    """
    real = torch.ones(share.shape[:-1], dtype=torch.bool) if real is None else real
    sums = (thumbnail.detach().double()[..., None, :] * share).sum(-1)
    sums = sums.masked_fill(~real, -torch.inf)
    weight = torch.exp((sums - sums.amax(-1, keepdim=True)) / tau)
    sigma = weight / (weight.sum(-1, keepdim=True) + eps)
    mean = sigma.sum(-1, keepdim=True) / real.sum(-1, keepdim=True)
    retention = torch.as_tensor(retention, dtype=torch.float64)[..., None]
    return (retention * (1 + sigma - mean)).clamp(max=1)


def global_scores(thumbnail: Tensor, layout: CropTables) -> Tensor:
    """The thumbnail's scores seen by the crops' patches, float32 `[B, n, N]`, 0 on padding.

    The score map is resized bilinearly to the part of the canvas that is not padding.

    Args:
        thumbnail: `[B, N]`.
        layout: from `crop_tables`.
    """
    index = layout.corner.flatten(1)
    corner = thumbnail.float().gather(1, index).view(layout.corner.shape)
    rows = (corner * layout.across[..., None, :]).sum(-1)
    return (rows * layout.down).sum(-1)


def holistic_scores(local: Tensor, thumbnail_view: Tensor, valid: Tensor) -> Tensor:
    """A crop's own scores plus the thumbnail's, each scaled to unit length; float32 `[..., n, N]`.

    Args:
        local: `[..., n, N]`, the crops' own scores.
        thumbnail_view: `[..., n, N]`, from `global_scores`.
        valid: bool `[..., n, N]`; padding counts in neither length.
    """
    parts = (x.float().masked_fill(~valid, 0) for x in (local, thumbnail_view))
    first, second = (normalize(x, dim=-1) for x in parts)
    return first + second


def compact_index(valid: Tensor) -> Tensor:
    """Int64 `[n, N]`: the place of each valid patch in its crop's un-padded token list."""
    return valid.long().cumsum(-1) - 1


def crop_extents(
    patch_grid: tuple[int, int], crops: tuple[int, int], region: tuple[int, int, int, int]
) -> Tensor:
    """Int64 `[n, 2]`: `(rows, cols)` of each crop that are inside `region`, each axis by itself."""

    def inside(size: int, count: int, low: int, high: int) -> Tensor:
        start = torch.arange(count) * size
        return ((start + size).clamp(max=high) - start.clamp(min=low)).clamp(min=0)

    rows = inside(patch_grid[0], crops[0], region[0], region[1])
    cols = inside(patch_grid[1], crops[1], region[2], region[3])
    return torch.stack(torch.meshgrid(rows, cols, indexing="ij"), -1).flatten(0, 1)


@dataclass(frozen=True)
class Choice:
    """What GlobalCom2 keeps of a batch, or of one image without the B, and the steps on the way.

    Attributes:
        ratios: float64 `[B, n]`, CPU: retention of each crop.
        view: float32 `[B, n, N]`: the thumbnail's scores seen by the crops.
        counts: int64 `[B, T]`, CPU: patches kept of each tile.
        order: int64 `[B, T, N]`: patches of each tile by descending score, padding last.
        keep: bool `[B, T, N]`: the first `counts` of them.
    """

    ratios: Tensor
    view: Tensor
    counts: Tensor
    order: Tensor
    keep: Tensor

    def image(self, index: int) -> Choice:
        """What is kept of one image."""
        return Choice(*(getattr(self, field.name)[index] for field in fields(self)))


def choose(
    scores: Tensor,
    layout: CropTables,
    retention: Sequence[float],
    totals: Sequence[int] | None = None,
    tau: float = 10.0,
    eps: float = 1e-8,
) -> Choice:
    """Budgets for thumbnails and crops, and the patches that fill them.

    The thumbnail keeps `floor(N * R)` of its patches by its own score, crop j keeps
    `floor(n_j * r_j)` of its n_j valid ones by the holistic score. No patch at all would be left
    of an image only at retentions below 1 / N: there the thumbnail's best one stays.

    Args:
        scores: `[B, T, N]`.
        layout: from `crop_tables`.
        retention: R of each image.
        totals: exact numbers of patches; the counts above are then scaled to them and rounded by
            largest remainders instead of down. None to round each down.
        tau, eps: see `crop_ratios`.
    """
    scores = scores.float()
    base = torch.tensor(retention, dtype=torch.float64)
    ratios = crop_ratios(to_host(scores[:, 0]), layout.share, base, tau, eps, layout.real)
    # the floors are the official ones, down to float64 noise: no rounding help here
    quota = layout.available.double() * torch.cat([base[:, None], ratios], 1)
    if totals is None:
        counts = torch.floor(quota).long()
        counts[:, 0] += counts.sum(1) == 0
    else:
        counts = apportion(quota, layout.available, totals)

    view = global_scores(scores[:, 0], layout)
    holistic = holistic_scores(scores[:, 1:], view, layout.valid[:, 1:])
    ranked = torch.cat([scores[:, :1], holistic], 1)
    order, keep = segmented_topk(
        ranked.flatten(0, 1), to_device(counts.flatten(), scores), layout.valid.flatten(0, 1)
    )
    return Choice(ratios, view, counts, order.view(ranked.shape), keep.view(ranked.shape))
