"""Picking one candidate after another, each by what the picks so far leave to be gained.

Four rules, for images side by side, each with candidates and a number of picks of its own:

* distance: the candidate that is farthest, by cosine, from the nearest pick (max-min);
* mmr: `balance * weight - (1 - balance) * cosine to the nearest pick` (maximal marginal relevance);
* dpp: the one that adds most to the volume of the picks, rows scaled by their weight (the greedy
  most likely set of a determinantal point process, by incremental Cholesky factors);
* cover: the one that covers most of what the picks leave uncovered (facility location).

Up to 4096 candidates an image the cosines are one product, which holds no more than the candidates do
at the width of a language model; of more candidates they are made as they are needed, O(N D) memory.
Scores only fall, so a candidate whose old score is not the largest need not be looked at: cover does
without most gains, and the twin without most cosines of many candidates.

Bytes: reads the candidates once, and for each pick one row of N numbers (dpp: one for each earlier pick
as well; cover: one for each gain that is looked at again); writes 8 * BK. K picks depend on each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.kernels._dispatch import Kernel, next_power, opaque, register, use_triton, widened
from vtc.kernels._gram import gram
from vtc.kernels._ordering import LONGEST

if TYPE_CHECKING:
    import triton.language as tl

RULES = ("distance", "mmr", "dpp", "cover")
#: share of its length that must stick out of the span of the picks for a candidate to have volume
FLAT = 1e-5
#: rows whose nearest neighbours are looked for at once, and stale gains that are at first
BLOCK, LAZY = 1024, 8
#: picks that all candidates are compared with at once, where they are many; what sums may differ by
SETTLED, SLACK = 64, 1e-5


def greedy_pick(
    rule: str,
    rows: Tensor,
    count: Tensor,
    most: int,
    weight: Tensor | None = None,
    valid: Tensor | None = None,
    demand: Tensor | None = None,
    balance: float = 0.5,
    together: int = 1,
) -> Tensor:
    """The picks of every image in order; ties to the lower index, nobody twice.

    The first pick is, by distance, the candidate farthest from its nearest neighbour; by mmr, the one
    with the largest weight. By dpp, candidates that add no volume follow by their weights.

    Args:
        rule: "distance", "mmr", "dpp" or "cover".
        rows: `[B, N, W]`, one a candidate: its vector, of any length, or how well it covers each of W
            things. Cosines are summed in float32.
        count: int64 `[B]`, picks wanted of each image; cut to the candidates there are.
        most: the largest of `count`.
        weight: `[B, N]`, see above; for cover, a factor of the gain, not negative. 1 by default.
        valid: bool `[B, N]`, candidates that may be picked; None for all.
        demand: for cover, `[B, W]`, how much each thing counts, not negative; 1 by default.
        balance: for mmr, from 0 to 1.
        together: for mmr, picks that are ranked at once; the first so many by weight alone.

    Returns:
        int64 `[B, most]`, -1 behind the last pick.
    """
    arguments = rows.detach(), count.to(rows.device), most, weight, valid, demand, balance, together
    small = rows.shape[1] <= LONGEST and (rule != "cover" or rows.shape[2] <= 2 * LONGEST)
    if small and use_triton(rows):
        return torch.ops.vtc.greedy_pick(rule, *arguments)
    return greedy_pick_torch(rule, *arguments)


# -- what kernel and twin begin with -----------------------------------------------------------------


def _units(rows: Tensor, valid: Tensor) -> Tensor:
    """Rows of unit length, 0 where they are not valid."""
    return torch.where(valid[..., None], normalize(rows, dim=-1), 0)


def _apart(likeness: Tensor, valid: Tensor, first: int = 0) -> Tensor:
    """How far the rows from `first` on are from their nearest neighbours: the negative cosine.

    Of `likeness`, whose entries of rows with themselves and with what is not valid are lost.
    """
    likeness.masked_fill_(~valid[:, None], -torch.inf)
    likeness.diagonal(first, 1, 2).fill_(-torch.inf)
    return -likeness.amax(2)


def _gains(rows: Tensor, weight: Tensor, demand: Tensor, covered: Tensor | None = None) -> Tensor:
    """`[B, M]`: what each of the rows `[B, M, W]` would cover more than is covered."""
    more = rows.clamp(min=0) if covered is None else (rows - covered[:, None]).clamp_(min=0)
    return weight * (more @ demand[..., None]).squeeze(-1)


def _spare(weight: Tensor, valid: Tensor) -> Tensor:
    """`[B, N]`: -1, -2, ... by falling weight, -inf where not valid; all are below any gain."""
    order = torch.sort(weight.masked_fill(~valid, -torch.inf), descending=True, stable=True).indices
    rank = torch.arange(-1, -1 - weight.shape[1], -1, device=weight.device, dtype=weight.dtype)
    spare = torch.empty_like(weight).scatter_(1, order, rank.expand_as(weight))
    return spare.masked_fill_(~valid, -torch.inf)


# -- the twin ----------------------------------------------------------------------------------------


def _twin(
    rule: str,
    rows: Tensor,
    count: Tensor,
    most: int,
    weight: Tensor | None,
    valid: Tensor | None,
    demand: Tensor | None,
    balance: float,
    together: int,
) -> Tensor:
    """The loops over picks."""
    rows = widened(rows)
    batch, size, things = rows.shape
    weight = rows.new_ones(batch, size) if weight is None else weight.to(rows)
    if valid is None:
        valid = torch.ones_like(weight, dtype=torch.bool)
    picks = count.new_empty(batch, most)
    if size == 0:
        return picks.fill_(-1)
    if rule == "cover":
        demand = rows.new_ones(batch, things) if demand is None else demand.to(rows)
        _cover(picks, rows, weight, valid, demand)
    elif rule == "dpp":
        _volume(picks, _cosines(_units(rows, valid))[0], weight, valid)
    else:
        unit, first = _units(rows, valid), weight
        similar, likeness = _cosines(unit)
        lazy = likeness is None and rows.device.type == "cpu"  # a device would be waited for
        if rule == "distance":
            balance, weight = 0.0, torch.zeros_like(weight)
            if likeness is not None:
                first = _apart(likeness, valid)
            else:
                first = _loneliest(unit, valid) if lazy else _alone(unit, valid)
        first, base = (x.masked_fill(~valid, -torch.inf) for x in (first, balance * weight))
        if lazy:
            _apart_lazily(picks, unit, first, base, 1 - balance, together)
        else:
            _apart_at_once(picks, similar, first, base, 1 - balance, together)
    limit = torch.minimum(count, valid.sum(1))
    return picks.masked_fill_(torch.arange(most, device=rows.device) >= limit[:, None], -1)


def _cosines(unit: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
    """A function of picks `[B]` that gives their cosines with all, `[B, N]`; and all cosines, of images
    with few enough candidates."""
    each = torch.arange(len(unit), device=unit.device)
    if unit.shape[1] > LONGEST:
        return lambda pick: (unit @ unit[each, pick][..., None]).squeeze(-1), None
    likeness = gram(unit)
    return lambda pick: likeness[each, pick], likeness


def _alone(unit: Tensor, valid: Tensor) -> Tensor:
    """`_apart`, by blocks of rows."""
    starts = range(0, unit.shape[1], BLOCK)
    return torch.cat([_apart(unit[:, s : s + BLOCK] @ unit.mT, valid, s) for s in starts], dim=1)


def _loneliest(unit: Tensor, valid: Tensor) -> Tensor:
    """1 for the candidate of each image that is farthest from its nearest neighbour, 0 for all others.

    A neighbour that was found can only be replaced by a nearer one: candidates whose nearest so far is
    nearer than the nearest of all to some other candidate are not looked at again.
    """
    out = unit.new_zeros(valid.shape)
    for rows, real, mark in zip(unit, valid, out, strict=True):
        left, least = torch.arange(len(rows)), float("inf")
        near = torch.where(real, -torch.inf, torch.inf)
        for start in range(0, len(rows), BLOCK):
            some = rows if len(left) == len(rows) else rows[left]
            close = some @ rows[start : start + BLOCK].mT
            close.masked_fill_(~real[start : start + BLOCK], -torch.inf)
            own = (left >= start) & (left < start + BLOCK)
            close[own, left[own] - start] = -torch.inf
            near = torch.maximum(near, close.amax(1))
            alone = left[near.argmin()]
            close = (rows @ rows[alone]).masked_fill_(~real, -torch.inf)
            close[alone] = -torch.inf
            least = min(least, float(close.max()))
            keep = near <= least + SLACK  # not an end for what another order of sums has rounded up
            keep[near.argmin()] = True  # where nothing is valid, or no number
            left, near = left[keep], near[keep]
        mark[left[near.argmin()]] = 1
    return out


def _apart_at_once(
    picks: Tensor,
    similar: Callable[[Tensor], Tensor],
    score: Tensor,
    base: Tensor,
    blend: float,
    together: int,
) -> None:
    """Fill `picks` by distance or mmr."""
    near = torch.full_like(base, -2)
    for t in range(picks.shape[1]):
        pick = score.argmax(1)
        picks[:, t] = pick
        torch.maximum(near, similar(pick), out=near)
        base.scatter_(1, pick[:, None], -torch.inf)
        if (t + 1) % together == 0:
            score = torch.sub(base, near, alpha=blend)
        else:
            score.scatter_(1, pick[:, None], -torch.inf)


def _apart_lazily(
    picks: Tensor, unit: Tensor, score: Tensor, base: Tensor, blend: float, together: int
) -> None:
    """The same with cosines made where scores may be the largest: scores only fall.

    Behind every `SETTLED` picks or so all are compared with these in one product, so that what is made
    here and there is the cosines with a few picks.
    """
    each = torch.arange(len(picks), device=base.device)
    picked = torch.zeros_like(unit[:, : picks.shape[1]])
    near = torch.full_like(base, -2)
    every, seen = -(-SETTLED // together) * together, 0

    def settle(t: int, pick: Tensor) -> bool:
        nonlocal seen
        picked[:, t] = unit[each, pick]
        base.scatter_(1, pick[:, None], -torch.inf)
        if t + 1 == together:  # until now weights alone decided
            torch.add(base, blend, out=score)  # no cosine is below -1
        if (t + 1) % every == 0:
            torch.maximum(near, (unit @ picked[:, seen : t + 1].mT).amax(2), out=near)
            torch.sub(base, near, alpha=blend, out=score)
            seen = t + 1
            return False
        return (t + 1) % together == 0

    def again(t: int, look: Tensor) -> Tensor:
        close = near.gather(1, look)
        if (now := t - t % together) > seen:
            more = unit[each[:, None], look] @ picked[:, seen:now].mT
            close = torch.maximum(close, more.amax(2))
        return base.gather(1, look) - blend * close

    _lazily(picks, score, settle, again)


def _volume(
    picks: Tensor, similar: Callable[[Tensor], Tensor], weight: Tensor, valid: Tensor
) -> None:
    """Fill `picks` by dpp: a pick's row of the Cholesky factor is all that its update needs."""
    spare, gain, floor = _spare(weight, valid), weight.square(), FLAT * weight.square()
    basis = weight.new_empty(len(picks), picks.shape[1], weight.shape[1])
    for t in range(picks.shape[1]):
        key = torch.where((gain > floor) & (spare > -torch.inf), gain, spare)
        best, pick = key.max(1, keepdim=True)
        picks[:, t] = pick.squeeze(1)
        row = similar(picks[:, t]) * weight * weight.gather(1, pick)
        if t > 0:
            own = basis[:, :t].gather(2, pick[:, None].expand(-1, t, 1))
            row -= (own.mT @ basis[:, :t]).squeeze(1)
        row = torch.where(best > 0, row * best.clamp(min=1e-30).rsqrt(), 0)
        basis[:, t] = row
        gain = gain - row.square()
        spare.scatter_(1, pick, -torch.inf)


def _cover(picks: Tensor, rows: Tensor, weight: Tensor, valid: Tensor, demand: Tensor) -> None:
    """Fill `picks` by cover."""
    each = torch.arange(len(picks), device=rows.device)
    covered = torch.zeros_like(demand)

    def settle(t: int, pick: Tensor) -> bool:
        torch.maximum(covered, rows[each, pick], out=covered)
        return True

    def again(t: int, look: Tensor) -> Tensor:
        return _gains(rows[each[:, None], look], weight.gather(1, look), demand, covered)

    bound = _gains(rows, weight, demand).masked_fill(~valid, -torch.inf)
    _lazily(picks, bound, settle, again, least=0)


def _lazily(
    picks: Tensor,
    bound: Tensor,
    settle: Callable[[int, Tensor], bool],
    again: Callable[[int, Tensor], Tensor],
    least: float = -torch.inf,
) -> None:
    """Fill `picks` where scores only fall: those that may be the largest are computed again.

    Args:
        bound: `[B, N]`, scores before the first pick, -inf for what must not be picked.
        settle: takes a pick of each image, `[B]`; whether scores change by it.
        again: scores of candidates `[B, M]` behind so many picks.
        least: score that cannot fall.
    """
    fresh = torch.ones_like(bound, dtype=torch.bool)
    for t in range(picks.shape[1]):
        some = LAZY
        while not bool(fresh.gather(1, bound.argmax(1, keepdim=True)).all()):
            stale = bound.masked_fill(fresh, -torch.inf)
            old, look = stale.topk(min(some, stale.shape[1]))
            found = torch.where(old > -torch.inf, again(t, look), bound.gather(1, look))
            bound.scatter_(1, look, found)
            fresh.scatter_(1, look, True)
            some *= 2
        pick = bound.argmax(1)
        picks[:, t] = pick
        changed = settle(t, pick)
        bound.scatter_(1, pick[:, None], -torch.inf)
        if changed:
            fresh = bound <= least


# -- the kernels -------------------------------------------------------------------------------------


@Kernel
def _pick_apart(
    likeness, first, base, limit, picks, size, most, blend, together, BLOCK: tl.constexpr
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < size
    score = tl.load(first + b * size + i, mask=inside, other=float("-inf"))
    own = tl.load(base + b * size + i, mask=inside, other=float("-inf"))
    near = tl.full([BLOCK], -2.0, dtype=tl.float32)
    for t in range(tl.load(limit + b).to(tl.int32)):
        pick = tl.argmax(score, 0)
        tl.store(picks + b * most + t, pick.to(tl.int64))
        row = tl.load(likeness + (b * size + pick) * size + i, mask=inside, other=0.0)
        near = tl.maximum(near, row)
        own = tl.where(i == pick, float("-inf"), own)
        score = tl.where(i == pick, float("-inf"), score)
        score = tl.where((t + 1) % together == 0, own - blend * near, score)


@Kernel
def _pick_volume(
    likeness, weight, spare, limit, basis, picks, size, most, FLAT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < size
    own = tl.load(weight + b * size + i, mask=inside, other=0.0)
    left = tl.load(spare + b * size + i, mask=inside, other=float("-inf"))
    gain = own * own
    floor = FLAT * gain
    for t in range(tl.load(limit + b).to(tl.int32)):
        key = tl.where((gain > floor) & (left > float("-inf")), gain, left)
        best = tl.max(key, 0)
        pick = tl.argmax(key, 0)
        tl.store(picks + b * most + t, pick.to(tl.int64))
        row = tl.load(likeness + (b * size + pick) * size + i, mask=inside, other=0.0)
        row *= own * tl.load(weight + b * size + pick)
        for s in range(t):
            before = basis + (b * most + s) * size
            row -= tl.load(before + pick) * tl.load(before + i, mask=inside, other=0.0)
        row = tl.where(best > 0, row * tl.rsqrt(tl.maximum(best, 1e-30)), 0.0)
        tl.store(basis + (b * most + t) * size + i, row, mask=inside)
        tl.debug_barrier()  # the next picks read numbers that other threads wrote
        gain -= row * row
        left = tl.where(i == pick, float("-inf"), left)


@Kernel
def _pick_cover(
    rows, bound, weight, demand, limit, picks, size, things, most,
    BLOCK: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    i, w = tl.arange(0, BLOCK), tl.arange(0, BLOCK_W)
    there = w < things
    most_left = tl.load(bound + b * size + i, mask=i < size, other=float("-inf"))
    need = tl.load(demand + b * things + w, mask=there, other=0.0)
    covered = tl.zeros([BLOCK_W], dtype=tl.float32)
    for t in range(tl.load(limit + b).to(tl.int32)):
        pick = tl.argmax(most_left, 0)
        stale = t > 0
        while stale:  # until the largest is one that was just looked at
            row = tl.load(rows + (b * size + pick) * things + w, mask=there, other=0.0)
            gain = tl.sum(need * tl.maximum(row - covered, 0.0), 0)
            gain *= tl.load(weight + b * size + pick)
            most_left = tl.where(i == pick, gain, most_left)
            largest = tl.argmax(most_left, 0)
            stale = largest != pick
            pick = largest
        tl.store(picks + b * most + t, pick.to(tl.int64))
        row = tl.load(rows + (b * size + pick) * things + w, mask=there, other=0.0)
        covered = tl.maximum(covered, row)
        most_left = tl.where(i == pick, float("-inf"), most_left)


def launch(
    rule: str,
    rows: Tensor,
    count: Tensor,
    most: int,
    weight: Tensor | None,
    valid: Tensor | None,
    demand: Tensor | None,
    balance: float,
    together: int,
) -> Tensor:
    """The Triton path: 1 launch for all picks, behind PyTorch's product of the candidates."""
    rows = rows.float().contiguous()
    batch, size, things = rows.shape
    weight = rows.new_ones(batch, size) if weight is None else weight.float().contiguous()
    if valid is None:
        valid = torch.ones_like(weight, dtype=torch.bool)
    limit = torch.minimum(count, valid.sum(1))
    picks = count.new_full((batch, most), -1)
    grid, block = (batch if size and most else 0,), next_power(max(size, 2))
    options = {"BLOCK": block, "num_warps": min(max(block // 256, 1), 16)}
    if rule == "cover":
        demand = rows.new_ones(batch, things) if demand is None else demand.float().contiguous()
        bound = _gains(rows, weight, demand).masked_fill_(~valid, -torch.inf)
        wide = next_power(max(things, 2))
        options["num_warps"] = min(max(max(block, wide) // 256, 1), 16)
        _pick_cover[grid](
            rows, bound, weight, demand, limit, picks, size, things, most, BLOCK_W=wide, **options
        )
        return picks
    unit = _units(rows, valid)
    likeness = unit @ unit.mT
    if rule == "dpp":
        basis = rows.new_empty(batch, most, size)
        spare = _spare(weight, valid)
        _pick_volume[grid](
            likeness, weight, spare, limit, basis, picks, size, most, FLAT=FLAT, **options
        )
        return picks
    first, base = weight, balance * weight
    if rule == "distance" and size:
        balance, base, first = 0.0, torch.zeros_like(weight), _apart(likeness, valid)
    first, base = (x.masked_fill(~valid, -torch.inf) for x in (first, base))
    _pick_apart[grid](
        likeness, first, base, limit, picks, size, most, 1.0 - balance, together, **options
    )
    return picks


def fake(
    rule: str,
    rows: Tensor,
    count: Tensor,
    most: int,
    weight: Tensor | None,
    valid: Tensor | None,
    demand: Tensor | None,
    balance: float,
    together: int,
) -> Tensor:
    """The result not yet filled."""
    return count.new_empty(rows.shape[0], most)


_SCHEMA = (
    "(str rule, Tensor rows, Tensor count, int most, Tensor? weight, Tensor? valid, Tensor? demand, "
    "float balance, int together) -> Tensor"
)
register("greedy_pick", _SCHEMA, launch, fake)
#: the PyTorch twin: a loop over picks alone; float64 stays float64
greedy_pick_torch = opaque("greedy_pick_torch", _SCHEMA, _twin, fake)
