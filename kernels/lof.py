"""Local outlier factor of scalars, one row a tile.

Bytes: reads the values once (and TN with a mask), writes 4 * TN. One launch, a row a program: sorted
line, windows, distances and densities stay on the chip, where the twin makes some twenty tensors of
`[T, N, k + 1]`. Sorting and 4 * (k + 1) reads a value from the line are the limit, not memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtc.kernels._dispatch import Kernel, next_power, register, use_triton, widened
from vtc.kernels._ordering import LONGEST, float_rank, rank_float

if TYPE_CHECKING:
    import triton.language as tl


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

    Rows of more than 4096 values go to the twin. No gradient: the factor is there to be counted.

    Args:
        values: `[T, N]`, finite; computed in float32.
        k: neighbours, at least 1.
        valid: bool `[T, N]`, the values that take part; None for all.

    Returns:
        float32 `[T, N]`; -1 (an inlier) for values that take no part and in rows of one value.
    """
    values = values.detach()
    if use_triton(values) and values.shape[1] <= LONGEST:
        return torch.ops.vtc.local_outlier_factor(values, k, valid)
    return local_outlier_factor_torch(values, k, valid)


def local_outlier_factor_torch(values: Tensor, k: int, valid: Tensor | None = None) -> Tensor:
    """The PyTorch twin; float64 is computed and returned in float64."""
    values = widened(values)
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


@Kernel
def _factor_of_rows(
    values, valid, factor, size, k, values_t, values_n, valid_t, valid_n,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The twin's steps, in its order and names; `tl.gather` reads from the sorted line."""
    t = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < size
    x = tl.load(values + t * values_t + place * values_n, mask=inside, other=0.0).to(tl.float32)
    usable = inside
    if MASKED:
        usable &= tl.load(valid + t * valid_t + place * valid_n, mask=inside, other=0) != 0
    count = tl.sum(usable.to(tl.int32), 0)
    near = tl.maximum(tl.minimum(count - 1, k), 1)

    group = 2 - inside.to(tl.int64) - usable.to(tl.int64)
    key = tl.sort((group << 48) | (float_rank(x) << 16) | place.to(tl.int64))
    index = key & 0xFFFF
    line = rank_float((key >> 16) & 0xFFFFFFFF)

    first = tl.maximum(place - near, 0)
    start = first
    for offset in range(0, near):
        left = first + offset
        behind = left + near + 1
        movable = (left < place) & (behind < count)
        gap_left = line - tl.gather(line, tl.minimum(left, BLOCK - 1), 0)
        gap_right = tl.gather(line, tl.minimum(behind, BLOCK - 1), 0) - line
        start += (movable & (gap_left > gap_right)).to(tl.int32)
    start = tl.minimum(start, tl.maximum(count - 1 - near, 0))

    k_distance = tl.zeros([BLOCK], dtype=tl.float32)
    for offset in range(0, near + 1):
        window = tl.minimum(start + offset, BLOCK - 1)
        is_near = (window != place) & (start + offset < count)
        distance = tl.abs(tl.gather(line, window, 0) - line)
        k_distance = tl.where(is_near, tl.maximum(k_distance, distance), k_distance)
    reach = tl.zeros([BLOCK], dtype=tl.float32)
    for offset in range(0, near + 1):
        window = tl.minimum(start + offset, BLOCK - 1)
        is_near = (window != place) & (start + offset < count)
        distance = tl.abs(tl.gather(line, window, 0) - line)
        reach += tl.where(is_near, tl.maximum(distance, tl.gather(k_distance, window, 0)), 0.0)
    density = 1.0 / (reach / near + 1e-10)
    ratio = tl.zeros([BLOCK], dtype=tl.float32)
    for offset in range(0, near + 1):
        window = tl.minimum(start + offset, BLOCK - 1)
        is_near = (window != place) & (start + offset < count)
        ratio += tl.where(is_near, tl.gather(density, window, 0) / density, 0.0)
    out = tl.where((place < count) & (count > 1), -ratio / near, -1.0)
    tl.store(factor + t * size + index, out, mask=inside)


def launch(values: Tensor, k: int, valid: Tensor | None) -> Tensor:
    """The Triton path: 1 launch."""
    rows, size = values.shape
    factor = fake(values, k, valid)
    block = next_power(max(size, 2))
    _factor_of_rows[(rows if size else 0,)](
        values, valid, factor, size, k, *values.stride(),
        *(valid.stride() if valid is not None else (0, 0)),
        MASKED=valid is not None, BLOCK=block, num_warps=max(min(block // 128, 8), 1),
    )  # fmt: skip
    return factor


def fake(values: Tensor, k: int, valid: Tensor | None) -> Tensor:
    """The result not yet filled."""
    return values.new_empty(values.shape, dtype=torch.float32)


register("local_outlier_factor", "(Tensor values, int k, Tensor? valid) -> Tensor", launch, fake)
