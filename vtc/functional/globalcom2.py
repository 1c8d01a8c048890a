"""The maths of GlobalCom2: crop budgets from the thumbnail, and scores of the crops' patches.

Source: Liu et al., "Global Compression Commander" (arXiv 2501.05179), read from the official code
for LLaVA-NeXT. T tiles, of which tile 0 is the thumbnail; n = T - 1 crops; N patches a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from vtc.functional.anyres import canvas_provenance
from vtc.functional.budget import apportion
from vtc.kernels.segmented_topk import segmented_topk


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


def crop_ratios(
    thumbnail: Tensor,
    patch_grid: tuple[int, int],
    crops: tuple[int, int],
    retention: float,
    tau: float = 10.0,
    eps: float = 1e-8,
) -> Tensor:
    """Retention of each crop, float64 `[n]` on the CPU: a softmax over the crops' summed scores.

    `r_j = min(R * (1 + sigma_j - mean(sigma)), 1)`. Float64 throughout: when the softmax saturates,
    `n_j * r_j` comes within 1e-7 of a whole number and float32 changes its floor.

    Args:
        thumbnail: `[N]`, scores of the thumbnail's patches.
        patch_grid, crops: `(rows, cols)` of a tile's patches and of the crops.
        retention: R.
        tau: temperature of the softmax.
        eps: added to its denominator.
    """
    scores = thumbnail.detach().cpu().double()
    sums = scores.new_zeros(crops[0] * crops[1])
    sums.index_add_(0, crop_of_patch(patch_grid, crops), scores)
    weight = torch.exp((sums - sums.max()) / tau)
    sigma = weight / (weight.sum() + eps)
    return (retention * (1 + sigma - sigma.mean())).clamp(max=1)


def global_scores(
    thumbnail: Tensor,
    patch_grid: tuple[int, int],
    crops: tuple[int, int],
    region: tuple[int, int, int, int],
) -> Tensor:
    """The thumbnail's scores seen by the crops' patches, float32 `[n, N]`, 0 on padding.

    The score map is resized bilinearly (half-pixel centres, no antialiasing) to the part of the
    canvas that is not padding.

    Args:
        thumbnail: `[N]`.
        patch_grid, crops: `(rows, cols)` of a tile's patches and of the crops.
        region: `(top, bottom, left, right)` of that part, see `anyres.valid_region`.
    """
    top, bottom, left, right = region
    rows, cols = crops[0] * patch_grid[0], crops[1] * patch_grid[1]
    canvas = thumbnail.new_zeros(rows, cols, dtype=torch.float32)
    if bottom > top and right > left:
        image = thumbnail.float().view(1, 1, *patch_grid)
        size = (bottom - top, right - left)
        canvas[top:bottom, left:right] = interpolate(
            image, size=size, mode="bilinear", align_corners=False
        )[0, 0]
    tile, patch = (x.to(canvas.device) for x in canvas_provenance(patch_grid, crops))
    out = canvas.new_zeros(crops[0] * crops[1], patch_grid[0] * patch_grid[1])
    out[tile - 1, patch] = canvas
    return out


def holistic_scores(local: Tensor, thumbnail_view: Tensor, valid: Tensor) -> Tensor:
    """A crop's own scores plus the thumbnail's, each scaled to unit length; float32 `[n, N]`.

    Args:
        local: `[n, N]`, the crops' own scores.
        thumbnail_view: `[n, N]`, from `global_scores`.
        valid: bool `[n, N]`; padding counts in neither length.
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
class Selection:
    """What GlobalCom2 keeps of one image, and the steps on the way.

    Attributes:
        ratios: float64 `[n]`, CPU: retention of each crop.
        view: float32 `[n, N]`: the thumbnail's scores seen by the crops.
        counts: int64 `[T]`, CPU: patches kept of each tile.
        order: int64 `[T, N]`: patches of each tile by descending score, padding last.
        keep: bool `[T, N]`: the first `counts[t]` of them.
    """

    ratios: Tensor
    view: Tensor
    counts: Tensor
    order: Tensor
    keep: Tensor


def select(
    scores: Tensor,
    valid: Tensor,
    patch_grid: tuple[int, int],
    crops: tuple[int, int],
    region: tuple[int, int, int, int],
    retention: float,
    total: int | None = None,
    tau: float = 10.0,
    eps: float = 1e-8,
) -> Selection:
    """Budgets for thumbnail and crops, and the patches that fill them.

    The thumbnail keeps `floor(N * R)` of its patches by its own score, crop j keeps
    `floor(n_j * r_j)` of its n_j valid ones by the holistic score. No patch at all would be left
    of an image only at retentions below 1 / N: there the thumbnail's best one stays.

    Args:
        scores: `[T, N]`.
        valid: bool `[T, N]` on the CPU, patches that are not padding.
        patch_grid, crops: `(rows, cols)` of a tile's patches and of the crops.
        region: `(top, bottom, left, right)` of the canvas that is not padding.
        retention: R.
        total: exact number of patches; the counts above are then scaled to it and rounded by
            largest remainders instead of down. None to round each down.
        tau, eps: see `crop_ratios`.
    """
    scores = scores.float()
    ratios = crop_ratios(scores[0], patch_grid, crops, retention, tau, eps)
    available = valid.sum(1)
    # the floors are the official ones, down to float64 noise: no rounding help here
    quota = available.double() * torch.cat([ratios.new_tensor([retention]), ratios])
    if total is None:
        counts = torch.floor(quota).long()
        if int(counts.sum()) == 0:
            counts[0] = 1
    else:
        counts = torch.tensor(apportion(quota.tolist(), available.tolist(), total))

    view = global_scores(scores[0], patch_grid, crops, region)
    usable = valid.to(scores.device)
    holistic = holistic_scores(scores[1:], view, usable[1:])
    order, keep = segmented_topk(torch.cat([scores[:1], holistic]), counts, usable)
    return Selection(ratios, view, counts, order, keep)
