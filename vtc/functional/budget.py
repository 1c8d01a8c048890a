"""Dividing a number of tokens among tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.errors import VTCError


def apportion(
    weights: Tensor | Sequence, capacity: Tensor | Sequence, total: Tensor | Sequence | int
) -> Tensor:
    """Whole numbers that sum to `total`, as close to proportional to `weights` as they can be.

    Shares above a capacity are cut to it and the excess goes to the others in proportion; then
    fractions are rounded by largest remainders, ties to the lower index. Rows are independent of
    each other. Works on the CPU, in float64.

    Args:
        weights: `[..., n]`, one share each, not negative. Where all that is left has weight 0, the
            capacities take their place.
        capacity: whole numbers `[..., n]`, the most that each may get.
        total: whole numbers `[...]`, between 0 and the sum of the row's capacities.

    Returns:
        int64 `[..., n]`.

    Raises:
        VTCError: a total does not fit, or a weight is negative or not finite.
    """
    weight = torch.as_tensor(weights, dtype=torch.float64)
    most = torch.as_tensor(capacity, dtype=torch.int64)
    wanted = torch.as_tensor(total, dtype=torch.int64)[..., None]
    _check(weight, most, wanted)

    # Water-filling: quota = min(scale * weight, capacity). In order of capacity / weight, an entry is
    # full when the scale that the entries before it leave is enough to fill it.
    cap = most.double()
    never = (weight <= 0) & (most > 0)
    order = (cap / weight).masked_fill(never, torch.inf).nan_to_num(0, torch.inf).argsort(-1)
    w, c = weight.gather(-1, order), cap.gather(-1, order)
    left = wanted - (c.cumsum(-1) - c)
    mass = w.flip(-1).cumsum(-1).flip(-1)
    full = (left * w >= c * mass) & ~never.gather(-1, order)
    full = torch.empty_like(full).scatter(-1, order, full.long().cummin(-1).values.bool())

    left = wanted - cap.masked_fill(~full, 0).sum(-1, keepdim=True)
    by = weight.masked_fill(full, 0)
    by = torch.where(by.sum(-1, keepdim=True) > 0, by, cap.masked_fill(full, 0))
    scale = left / by.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    quota = torch.where(full, cap, torch.minimum(by * scale, cap))

    counts = torch.floor(quota + 1e-9).long()
    # remainders that differ by rounding noise alone are ties
    remainder = torch.round(quota - counts, decimals=9).masked_fill(counts >= most, -1)
    order = torch.sort(remainder, dim=-1, descending=True, stable=True).indices
    rank = order.argsort(dim=-1)
    return counts + (rank < wanted - counts.sum(-1, keepdim=True))


def _check(weight: Tensor, most: Tensor, wanted: Tensor) -> None:
    whole = most.sum(-1, keepdim=True)
    faults = [((wanted < 0) | (wanted > whole)).any(), (~weight.isfinite() | (weight < 0)).any()]
    misfit, wild = torch.stack(faults).tolist()
    if misfit:
        row = ((wanted < 0) | (wanted > whole)).flatten().nonzero()[0]
        raise VTCError(
            f"total: got {int(wanted.flatten()[row])}, allowed are 0 to {int(whole.flatten()[row])}"
        )
    if wild:
        raise VTCError(f"weights: got {weight.tolist()}, allowed are finite numbers >= 0")
