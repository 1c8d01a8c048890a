"""Similarity of image tokens to a text or segmentation token, and points drawn from the map.

READ, "Reasoning to Attend" (arXiv 2412.17741), reads off where a language model looks when it
emits its segmentation token. As a text-guided score for keeping tokens, the similarity is enough.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.errors import VTCError


def token_similarity(image: Tensor, query: Tensor) -> Tensor:
    """How much each image token resembles each query token, as plain dot products.

    With several queries each map is weighted by how much the first image token prefers that query:
    `softmax(2 <image_0, query_j>)` over j, relative to its mean. One query has weight 1.

    Args:
        image: `[B, N, C]` hidden states of the image tokens.
        query: `[Q, C]` hidden states of the query tokens, of the same layer.

    Returns:
        `[B, N, Q]`.

    Raises:
        VTCError: the widths differ.
    """
    if image.dim() != 3 or query.dim() != 2 or image.shape[-1] != query.shape[-1]:
        raise VTCError(
            f"query: got shape {tuple(query.shape)} for image tokens of shape "
            f"{tuple(image.shape)}, expected [queries, width] and [batch, tokens, width]"
        )
    similarity = image @ query.transpose(0, 1)
    if query.shape[0] == 1:
        return similarity
    weight = (2 * similarity[:, :1]).softmax(dim=-1)
    return similarity * weight / weight.mean(dim=-1, keepdim=True)


#: Cells a side of the enlarged map that points are refined on (the input side of READ's encoder).
FULL_SIDE = 336


def similarity_points(
    similarity: Tensor,
    image_size: tuple[int, int],
    count: int = 30,
    positive: float = 0.8,
    negative: float = 0.2,
    down_sample: int = 2,
) -> tuple[Tensor, Tensor]:
    """Points on the image where a similarity map is high, low, or neither.

    The square map is down-sampled, scaled to [0, 1] and padded to the aspect ratio of the image.
    Points are taken in the order: similar (falling), dissimilar (rising), the rest (raster order).
    Each is moved to the mean of its surroundings on the map enlarged to the image, which is
    differentiable.

    Args:
        similarity: `[N]`, a square grid in raster order.
        image_size: `(height, width)` in pixels.
        count: points wanted.
        positive: scaled similarity from which a point is similar.
        negative: scaled similarity up to which a point is dissimilar.
        down_sample: factor of the map the points are taken from.

    Returns:
        `[count, 2]` x and y in pixels; int64 `[count]` labels: 1 similar, 0 dissimilar, -1 neither.

    Raises:
        VTCError: N is no square number, or the map has fewer than `count` cells.
    """
    side = math.isqrt(similarity.numel())
    if side * side != similarity.numel():
        raise VTCError(f"similarity: got {similarity.numel()} tokens, not a square grid")
    small = side // down_sample
    if small * small < count:
        raise VTCError(f"count: got {count}, the map has {small * small} cells")
    fine = similarity.reshape(1, 1, side, side).float()
    coarse = _unit_range(F.interpolate(fine, (small, small), mode="bilinear"))
    coarse = _pad_to_aspect(coarse, image_size, -1.0)[0, 0]
    value = coarse.flatten()

    def members(chosen: Tensor) -> Tensor:
        return chosen.nonzero().squeeze(1)

    high = members(value >= positive)
    low = members((value >= 0) & (value <= negative))
    groups = (
        high[value[high].argsort(descending=True, stable=True)],
        low[value[low].argsort(stable=True)],
        members((value > negative) & (value < positive)),
    )
    index = torch.cat(groups)[:count]
    labels = torch.tensor([1, 0, -1]).repeat_interleave(torch.tensor([len(g) for g in groups]))
    height, width = image_size
    rows, cols = coarse.shape
    # the pixel that holds the middle of the cell
    x, y = (index % cols + 0.5) * (width / cols), (index // cols + 0.5) * (height / rows)
    centre = torch.stack([x, y], dim=-1).floor()
    full = F.interpolate(_unit_range(fine), (FULL_SIDE, FULL_SIDE), mode="bilinear")
    full = F.interpolate(_pad_to_aspect(full, image_size, 0.0), image_size, mode="bilinear")
    return _refine(centre, full[0, 0]), labels[:count].to(index.device)


def _refine(points: Tensor, full: Tensor) -> Tensor:
    """Means of the pixels around `points`, weighted by `exp(-distance**2)` and the softmax."""
    height, width = full.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y], dim=-1).flatten(0, 1).to(full)
    distance = (pixels.unsqueeze(0) - points.unsqueeze(1)).square().sum(-1)
    weight = torch.softmax(full.flatten() - distance, dim=-1)
    return weight @ pixels


def _unit_range(x: Tensor) -> Tensor:
    return (x - x.min()) / (x.max() - x.min()).clamp(min=torch.finfo(x.dtype).tiny)


def _pad_to_aspect(x: Tensor, image_size: tuple[int, int], value: float) -> Tensor:
    """Pad a square map `[..., S, S]` alike on both sides of the longer image side.

    An odd rest is left out, so the cells of a padded map may be a little wider than tall. The
    product is rounded down in floating point, as published.
    """
    side = x.shape[-1]
    scale = side / min(image_size)
    top, left = (max(int(length * scale) - side, 0) // 2 for length in image_size)
    return F.pad(x, (left, left, top, top), value=value)
