"""Density peaks: tokens in crowded places, far from any more crowded one, are centres of clusters.

After Rodriguez and Laio (2014), with the density taken from the nearest neighbours as token clustering
does it. R sets of N tokens each; masked ones are not there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.kernels.segmented_topk import segmented_topk


def distances(tokens: Tensor, valid: Tensor) -> Tensor:
    """Distances over the root of the width, float32 `[R, N, N]`.

    Tokens are moved to their mean before they are multiplied, since large common parts cost digits.

    Args:
        tokens: `[R, N, C]`.
        valid: bool `[R, N]`.
    """
    x, real = tokens.detach().float(), valid[..., None]
    count = real.sum(1, keepdim=True).clamp(min=1)
    x = (x - x.masked_fill(~real, 0).sum(1, keepdim=True) / count).masked_fill_(~real, 0)
    square = x.square().sum(-1)
    both = square[:, :, None] + square[:, None] - 2 * (x @ x.transpose(1, 2))
    return (both.clamp(min=0).sqrt() / x.shape[-1] ** 0.5).diagonal_scatter(
        square.new_zeros(square.shape), dim1=1, dim2=2
    )


def peak_scores(distance: Tensor, valid: Tensor, neighbours: int | Tensor) -> Tensor:
    """Density times distance to the nearest denser token, float32 `[R, N]`; 0 for what is masked.

    The density is `exp(-mean squared distance)` to the nearest neighbours, a token itself among them;
    of equal ones the first is the denser. The densest token has the largest distance of its set.

    Args:
        distance: `[R, N, N]`.
        valid: bool `[R, N]`.
        neighbours: how many, or all where there are fewer; or int64 `[R]`, of each set.
    """
    size = distance.shape[-1]
    here = valid[:, :, None] & valid[:, None]
    far = distance.masked_fill(~here, torch.inf)
    if isinstance(neighbours, int):
        near = far.topk(min(neighbours, size), largest=False).values.square()
        known = near.isfinite()
    else:
        near = far.sort(dim=-1).values.square()
        nth = torch.arange(size, device=near.device)
        known = near.isfinite() & (nth < neighbours[:, None, None])
    density = torch.exp(-near.masked_fill(~known, 0).sum(-1) / known.sum(-1).clamp(min=1))
    density = density.masked_fill(~valid, -1)
    order = torch.sort(density, dim=-1, descending=True, stable=True).indices
    rank = torch.arange(size, device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, rank)
    nearest = far.masked_fill(rank[:, None] >= rank[:, :, None], torch.inf).amin(-1)
    largest = distance.masked_fill(~here, 0).amax((1, 2))
    nearest = torch.where(rank == 0, largest[:, None], nearest)
    return (density * nearest).masked_fill(~valid, 0)


def clusters(
    tokens: Tensor, valid: Tensor, counts: Tensor, neighbours: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Each set in so many clusters, around its best peaks.

    Args:
        tokens: `[R, N, C]`.
        valid: bool `[R, N]`.
        counts: int64 `[R]`, clusters wanted.
        neighbours: see `peak_scores`.

    Returns:
        int64 `[R, N]`, the centre that each token is nearest to, the first of equally near ones, a
        centre to itself; int64 `[R, N]`, tokens by falling peak score, masked ones last.
    """
    distance = distances(tokens, valid)
    order, centre = segmented_topk(peak_scores(distance, valid, neighbours), counts, valid)
    nearest = distance.masked_fill(~centre[:, None], torch.inf).argmin(-1)
    own = torch.arange(nearest.shape[1], device=nearest.device)
    return torch.where(centre, own, nearest), order
