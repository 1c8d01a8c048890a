"""Similarity of image tokens to a text or segmentation token, and points drawn from the map.

READ, "Reasoning to Attend" (arXiv 2412.17741), reads off where a language model looks when it
emits its segmentation token. As a text-guided score for keeping tokens, the similarity is enough.
"""

from __future__ import annotations

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


def similarity_points(
    similarity: Tensor,
    image_size: tuple[int, int],
    count: int = 30,
    positive: float = 0.8,
    negative: float = 0.2,
    down_sample: int = 2,
) -> tuple[Tensor, Tensor]:
    """Points on the image where a similarity map is high, low, or neither.

    The square map is scaled to [0, 1], down-sampled, scaled again and padded to the aspect ratio.
    Points are taken in the order: similar (falling), dissimilar (rising), the rest (falling). Each
    is moved to the mean of its surroundings on the full-size map, which is differentiable.

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
    side = round(similarity.numel() ** 0.5)
    if side * side != similarity.numel():
        raise VTCError(f"similarity: got {similarity.numel()} tokens, not a square grid")
    fine = _unit_range(similarity.reshape(1, 1, side, side))
    small = side // down_sample
    coarse = F.interpolate(fine, (small, small), mode="bilinear", align_corners=False)
    coarse = _pad_to_aspect(_unit_range(coarse)[0, 0], image_size)
    value = coarse.flatten()
    if int((value >= 0).sum()) < count:
        raise VTCError(f"count: got {count}, the map has {int((value >= 0).sum())} cells")

    def members(chosen: Tensor, descending: bool) -> Tensor:
        index = chosen.nonzero().squeeze(1)
        return index[value[index].argsort(descending=descending, stable=True)]

    groups = [
        members(value >= positive, True),
        members((value <= negative) & (value >= 0), False),
        members((value < positive) & (value > negative), True),
    ]
    index = torch.cat(groups)[:count]
    labels = torch.cat(
        [torch.full_like(g, mark) for g, mark in zip(groups, (1, 0, -1), strict=True)]
    )[:count]
    height, width = image_size
    rows, cols = coarse.shape
    # the pixel that holds the middle of the cell
    x, y = (index % cols + 0.5) * width / cols, (index // cols + 0.5) * height / rows
    centre = torch.stack([x, y], dim=-1).floor()
    short = min(image_size)
    full = F.interpolate(fine, (short, short), mode="bilinear", align_corners=False)
    return _refine(centre, _pad_to_aspect(full[0, 0], image_size)), labels


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


def _pad_to_aspect(x: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Pad a square map with -1 on both sides of the longer image side."""
    height, width = image_size
    side = x.shape[-1]
    rows = max(side, round(side * height / width))
    cols = max(side, round(side * width / height))
    top, left = (rows - side) // 2, (cols - side) // 2
    return F.pad(x, (left, cols - side - left, top, rows - side - top), value=-1.0)
