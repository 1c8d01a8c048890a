"""Three methods that compare every two patches, in the style of their official code: see `standins.py`.

One image at a time, one pick or cluster at a time, `.item()` for each. Random noise that breaks ties is
left out, so that the result can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def divprune(features: Tensor, count: int) -> list[int]:
    """DivPrune of one image: all distances, and at each pick those of all picks so far once more.

    Args:
        features: `[N, D]`.

    Returns:
        The patches that are kept, ascending.
    """
    unit = normalize(features, dim=1)
    distance = 1 - unit @ unit.T
    nearest = distance.topk(2, dim=0, largest=False).values[1]
    picks: list[int] = []
    for _ in range(count):
        if picks:
            so_far = torch.tensor(picks).to(features.device)
            nearest = distance.index_select(0, so_far).min(0).values
            nearest[picks] = -math.inf  # officially a pick may come twice
        picks.append(int(nearest.argmax().item()))
    return sorted(picks)


def mmr(features: Tensor, importance: Tensor, count: int, balance: float = 0.5) -> list[int]:
    """Maximal marginal relevance of one image: at each pick a product of all patches with it.

    Args:
        features: `[N, D]`.
        importance: `[N]`.

    Returns:
        The patches that are kept, ascending.
    """
    unit = normalize(features, dim=1)
    low, high = importance.min(), importance.max()
    gain = importance = (importance - low) / (high - low + 1e-6)
    near = torch.full_like(importance, -math.inf)
    picks: list[int] = []
    for _ in range(count):
        pick = int(gain.argmax().item())
        picks.append(pick)
        near = torch.maximum(near, unit @ unit[pick])
        gain = balance * importance - (1 - balance) * near
        gain[picks] = -math.inf
    return sorted(picks)


def prunevid(features: Tensor, counts: Sequence[int], k: int = 7) -> dict[int, Tensor]:
    """The clusters of PruneVid's first stage where each tile is a window of one frame.

    Args:
        features: `[T, N, D]`.
        counts: clusters of each tile.

    Returns:
        The centre of each cluster, as `tile * N + patch`, and the mean of its members `[D]`.
    """
    patches, out = features.shape[1], {}
    for index, (tile, count) in enumerate(zip(features, counts, strict=True)):
        distance = torch.cdist(tile, tile) / tile.shape[1] ** 0.5
        density = (-distance.topk(k, largest=False).values.square().mean(1)).exp()
        denser = density[None] > density[:, None]
        parent = torch.where(denser, distance, distance.max()).min(1).values
        centres = (parent * density).topk(count).indices
        member = distance[centres].argmin(0)
        member[centres] = torch.arange(count, device=features.device)
        for cluster in range(count):
            place = index * patches + int(centres[cluster].item())
            out[place] = tile[member == cluster].mean(0)
    return out
