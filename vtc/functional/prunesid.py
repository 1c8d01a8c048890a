"""The maths of PruneSID: principal directions make groups, and in each alike patches suppress others.

Source: "Prune Redundancy, Preserve Essence" (arXiv 2603.09480), from its description and behaviour. S
tiles, N patches a tile, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.kernels.suppress import suppress


def principal_groups(features: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Int64 `[S, N]`: the principal direction that each patch has the largest part in.

    The directions are those of the patches' channels behind a sigmoid, each patch centred.

    Args:
        features: `[S, N, C]`.
        valid: bool `[S, N]`; padding has no part in them.
        count: int64 `[S]`, directions of each tile.
    """
    x = torch.sigmoid(torch.nan_to_num(features.float()))
    x = (x - x.mean(2, keepdim=True)).masked_fill(~valid[..., None], 0).double()
    # right singular vectors, the largest last: float64 makes up for the square
    part = torch.linalg.eigh(x @ x.mT).eigenvectors.flip(-1).abs()  # [S, N, directions]
    nth = torch.arange(part.shape[-1], device=part.device)
    return part.masked_fill((nth >= count[:, None])[:, None], -1).argmax(-1)


def alike(features: Tensor, valid: Tensor, factor: Tensor) -> Tensor:
    """Bool `[S, N, N]`: pairs whose cosine is above `factor` `[S]` times the mean of all pairs."""
    unit = normalize(features.float(), dim=-1).masked_fill(~valid[..., None], 0)
    size = valid.sum(1)
    whole = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))
    mean = whole / (size * (size - 1)).clamp(min=1)
    return unit @ unit.mT > (factor * mean)[:, None, None]


def unsuppressed(like: Tensor, group: Tensor, order: Tensor, valid: Tensor) -> Tensor:
    """Bool `[S, N]`: patches that no kept one of their group, ahead of them, is like.

    Args:
        like: bool `[S, N, N]`.
        group: int64 `[S, N]`.
        order: int64 `[S, N]`, patches by rank.
        valid: bool `[S, N]`, those that take part.
    """
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)
    ahead = (rank[:, None] < rank[:, :, None]) & (group[:, None] == group[:, :, None])
    return suppress(like & ahead & valid[:, None], valid)


def deal(sizes: list[int], kept: list[int], tokens: int) -> list[int]:
    """Tokens of each group of a tile.

    Every group has one; the others go out by how many patches the suppression leaves of each, up to a
    bound that is raised until there is room for all.

    Args:
        sizes, kept: patches of each group, and how many of them suppress the others.
        tokens: of the tile, one more than its patches that stay (the published number counts CLS).
    """
    low = [min(1, size) for size in sizes]
    most = 5 * -(-tokens // 64)
    high = [min(most, *pair) for pair in zip(sizes, kept, strict=True)]
    while sum(high) < min(tokens, sum(sizes)):
        high = [min(some + 1, size) for some, size in zip(high, sizes, strict=True)]
    extra, whole, before, seen = tokens - 1 - sum(low), sum(kept), 0, 0
    out = []
    for some, count, bound in zip(low, kept, high, strict=True):
        seen += count
        until = round(seen / whole * extra)
        out.append(min(some + until - before, bound))
        before = until
    left = tokens - 1 - sum(out)
    for nth in sorted(range(len(kept)), key=lambda group: -kept[group]):
        more = min(left, high[nth] - out[nth])
        out[nth], left = out[nth] + more, left - more
    return out
