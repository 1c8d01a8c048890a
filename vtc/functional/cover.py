"""Cover: which of a set is nearest to everything, and a few that stand for many."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.kernels.merge import weighted_merge

#: rows that are compared at once, so that memory is bounded
BLOCK = 4096


def nearest_of(rows: Tensor, chosen: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The member of a set that is most alike each row by cosine; a member is its own.

    Args:
        rows: `[P, N, D]`.
        chosen: int64 `[P, M]`, the members as rows, each once.
        real: bool `[P, M]`, which of these count; at least one of each set.

    Returns:
        int64 `[P, N]`, a row of the set for each row, and float32 `[P, N]`, the cosine with it. Blocks
        of 4,096 rows are compared at a time.
    """
    at = chosen.masked_fill(~real, 0)
    unit = normalize(rows.float(), dim=-1)
    keys = unit.gather(1, at[..., None].expand(-1, -1, rows.shape[2])).mT
    close, nth = [], []
    for block in unit.split(BLOCK, 1):
        best = (block @ keys).masked_fill_(~real[:, None], -torch.inf).max(2)
        close.append(best.values.float())  # autocast multiplies in half precision
        nth.append(best.indices)
    owner = at.gather(1, torch.cat(nth, 1))
    # a member's own place is written last; what is not real writes behind the end
    place = torch.where(real, at, rows.shape[1])
    owner = _put(owner, place, at)
    return owner, _put(torch.cat(close, 1), place, torch.ones_like(place, dtype=torch.float32))


def representatives(rows: Tensor, demand: Tensor, valid: Tensor, most: int) -> tuple[Tensor, ...]:
    """The `most` rows of each set that are in the greatest demand, and what they stand for.

    What is not among them hands its demand to the most alike of those that are, so that none is lost.

    Args:
        rows: `[P, N, D]`.
        demand: `[P, N]`, not negative.
        valid: bool `[P, N]`; the rest stands for nothing and comes last.
        most: M, at most N.

    Returns:
        int64 `[P, M]`, the rows in rising order; float32 `[P, M]`, their demand; bool `[P, M]`, which
        are valid.
    """
    ranked = (
        demand.float().masked_fill(~valid, -1).sort(dim=1, descending=True, stable=True).indices
    )
    chosen = ranked[:, :most].sort(1).values
    real = valid.gather(1, chosen)
    owner, _ = nearest_of(rows, chosen, real)
    needs = torch.where(valid, demand.float(), 0)
    sums = handed(needs, owner)
    return chosen, sums.gather(1, chosen), real


def handed(values: Tensor, owner: Tensor) -> Tensor:
    """Sums of `values` `[P, N]` over those with the same `owner` `[P, N]`, at the owner."""
    flat = torch.arange(values.numel(), device=values.device)
    row = flat // values.shape[1] * values.shape[1]
    sums = weighted_merge(
        values.flatten()[:, None],
        row + owner.flatten(),
        flat,
        torch.ones_like(values).flatten(),
        values.numel(),
    )
    return sums.view_as(values)


def _put(values: Tensor, place: Tensor, given: Tensor) -> Tensor:
    """`values` `[P, N]` with `given` `[P, M]` at `place`, N for nowhere."""
    more = torch.cat([values, values[:, :1]], 1)
    return more.scatter_(1, place, given)[:, :-1]
