"""EADP's importance: the question's most pointed tokens, smoothed over the picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad


def pointed_relevance(
    rows: Tensor,
    whole: Tensor,
    tokens: Tensor,
    real: Tensor,
    pointed: Tensor,
    valid: Tensor,
    alpha: float,
    sharpness: float,
    temperature: float,
) -> Tensor:
    """`alpha * likeness to the whole question + (1 - alpha) * likeness to its pointed tokens`, negated.

    A token is the more pointed the fewer patches it is unlike: the lower the entropy of a softmax of the
    negated cosines over a tile's patches. The pointed ones are weighed by a softmax of their entropies.

    Args:
        rows: `[S, N, D]` of patches.
        whole: `[S, D]`, the question as one vector.
        tokens: `[S, L, D]`, its tokens.
        real: bool `[S, L]`, which of them are tokens.
        pointed: int64 `[S]`, how many of them count.
        valid: bool `[S, N]`, patches that are not padding.
        alpha: weight of the whole.
        sharpness: factor in the softmax over patches.
        temperature: of the softmax over tokens.

    Returns:
        Float32 `[S, N]`.
    """
    rows, whole, tokens = (normalize(x.float(), dim=-1) for x in (rows, whole, tokens))
    away = -(rows @ tokens.mT)  # [S, N, L]
    least = torch.finfo(away.dtype).min
    share = (sharpness * away).masked_fill(~valid[..., None], least).softmax(1)
    entropy = (share * -(share + 1e-12).log()).sum(1).masked_fill(~real, torch.inf)
    order = torch.sort(entropy, dim=1, stable=True).indices
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    kept = (rank < pointed[:, None]) & real
    lowest = entropy.amin(1, keepdim=True).nan_to_num(posinf=0)
    weight = ((lowest - entropy) / (temperature + 1e-6)).exp() * kept
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-12)
    local = (away @ weight[..., None]).squeeze(-1)
    return alpha * -(rows @ whole[..., None]).squeeze(-1) + (1 - alpha) * local


def smoothed(values: Tensor, valid: Tensor, patch_grid: tuple[int, int], sigma: float) -> Tensor:
    """Values of patches `[S, N]` under a 3 x 3 Gaussian inside each tile.

    Beyond the edge a tile is mirrored; an axis of one line is left alone. Padding has no weight.
    """
    side = math.exp(-0.5 / sigma**2)
    kernel = [w / (1 + 2 * side) for w in (side, 1.0, side)]
    planes = torch.stack([values.masked_fill(~valid, 0), valid.to(values)])
    planes = planes.unflatten(2, patch_grid)
    for axis in (2, 3):
        lines = planes.shape[axis]
        if lines > 1:
            edge = [0, 0, 1, 1] if axis == 2 else [1, 1, 0, 0]
            more = pad(planes, edge, mode="reflect")
            parts = (more.narrow(axis, k, lines) * w for k, w in enumerate(kernel))
            planes = sum(parts, torch.zeros_like(planes))
    value, weight = planes.flatten(2).unbind()
    return (value / weight.clamp(min=1e-12)).masked_fill(~valid, 0)
