"""Local outlier factor of scalars, one row a tile."""

from __future__ import annotations

import torch
from torch import Tensor


def local_outlier_factor(values: Tensor, k: int, valid: Tensor | None = None) -> Tensor:
    """Negative local outlier factor of every value among the values of its row.

    The numbers are those of scikit-learn's `LocalOutlierFactor(n_neighbors=k)` on float32 input
    (Breunig et al., 2000): `k' = max(1, min(k, n - 1))` neighbours without the point itself,
    float32 distances, `reach(p, o) = max(d(p, o), kdist(o))`,
    `density(p) = 1 / (mean reach + 1e-10)` and `factor(p) = -mean(density(o) / density(p))`.
    A value is an outlier below -1.5. The 1e-10 weighs on values as small as attention: rescaling
    the input changes the result.

    In one dimension the neighbours of a point fill a window of the sorted row that holds the point,
    so nothing of size `[n, n]` is needed. Equidistant neighbours on both sides are the one freedom:
    here the left (smaller) one wins, scikit-learn's choice follows its search tree.

    Args:
        values: `[T, N]`; computed in float32.
        k: neighbours, at least 1.
        valid: bool `[T, N]`, the values that take part; None for all.

    Returns:
        float32 `[T, N]`; -1 (an inlier) for values that take no part and in rows of one value.

    Bytes: reads 4 TN (+ TN), writes 4 TN; holds a few `[T, N, k + 1]` tensors.
    """
    values = values.float()
    tiles, size = values.shape
    if size == 0:
        return values.clone()
    device = values.device
    if valid is None:
        valid = torch.ones(tiles, size, dtype=torch.bool, device=device)
    count = valid.sum(1, keepdim=True)  # [T, 1]
    near = (count - 1).clamp(min=1, max=max(k, 1))  # k' of each row

    # values that take no part go to the end of the row; finite, so that differences stay numbers
    order = torch.sort(values.masked_fill(~valid, torch.inf), dim=1, stable=True).indices
    line = values.gather(1, order)

    span = min(max(k, 1), size - 1)
    place = torch.arange(size, device=device)[None, :]  # [1, N] of the point
    offset = torch.arange(span + 1, device=device)

    # The window of point p starts at s, where s moves right as long as the value on its left end
    # is farther from p than the next one behind its right end.
    start = (place - near).clamp(min=0).expand(tiles, size)
    left = start[..., None] + offset  # candidates for s, [T, N, span + 1]
    behind = left + near[..., None] + 1
    movable = (left < place[..., None]) & (behind < count[..., None])
    gap_left = line[..., None] - _take(line, left)
    gap_right = _take(line, behind) - line[..., None]
    start = start + (movable & (gap_left > gap_right)).sum(-1)
    start = torch.minimum(start, (count - 1 - near).clamp(min=0))

    window = start[..., None] + offset  # [T, N, span + 1], the point itself among them
    is_near = (offset <= near[..., None]) & (window != place[..., None])
    is_near &= window < count[..., None]
    distance = (_take(line, window) - line[..., None]).abs()
    reach = distance.masked_fill(~is_near, 0)
    k_distance = reach.amax(-1)
    reach = torch.maximum(reach, _take(k_distance, window)).masked_fill(~is_near, 0)
    density = 1 / (reach.sum(-1) / near + 1e-10)
    ratio = _take(density, window) / density[..., None]
    factor = -(ratio.masked_fill(~is_near, 0).sum(-1) / near)

    factor = torch.where((place < count) & (count > 1), factor, -torch.ones_like(factor))
    return torch.empty_like(values).scatter_(1, order, factor)


def _take(row: Tensor, index: Tensor) -> Tensor:
    """`row[t, index[t, n, j]]` with the index cut to the row, `[T, N, J]`."""
    flat = index.clamp(max=row.shape[1] - 1).flatten(1)
    return row.gather(1, flat).view(index.shape)
