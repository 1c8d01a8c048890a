"""Dividing a number of tokens among tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vtc.errors import VTCError


def apportion(weights: Sequence[float], capacity: Sequence[int], total: int) -> list[int]:
    """Whole numbers that sum to `total`, as close to proportional to `weights` as they can be.

    Shares above a capacity are cut to it and the excess goes to the others in proportion; then
    fractions are rounded by largest remainders, ties to the lower index.

    Args:
        weights: one share each, not negative. Where all that is left has weight 0, the capacities
            take their place.
        capacity: the most that each may get.
        total: between 0 and the sum of the capacities.

    Raises:
        VTCError: `total` does not fit, or a weight is negative or not finite.
    """
    if not 0 <= total <= sum(capacity):
        raise VTCError(f"total: got {total}, allowed are 0 to {sum(capacity)}")
    if any(not math.isfinite(w) or w < 0 for w in weights):
        raise VTCError(f"weights: got {list(weights)}, allowed are finite numbers >= 0")

    quota = [0.0] * len(weights)
    free = [i for i, most in enumerate(capacity) if most > 0]
    left = float(total)
    while free and left > 0:
        mass = sum(weights[i] for i in free)
        by: Sequence[float] = weights if mass > 0 else capacity
        mass = sum(by[i] for i in free)
        share = {i: left * by[i] / mass for i in free}
        full = [i for i in free if share[i] >= capacity[i]]
        for i in full or free:
            quota[i] = min(share[i], capacity[i])
        if not full:
            break
        left -= sum(capacity[i] for i in full)
        free = [i for i in free if i not in full]

    counts = [math.floor(q + 1e-9) for q in quota]
    # remainders that differ by rounding noise alone are ties
    by_remainder = sorted(range(len(quota)), key=lambda i: -round(quota[i] - counts[i], 9))
    missing = total - sum(counts)
    while missing > 0:
        for i in by_remainder:
            if missing > 0 and counts[i] < capacity[i]:
                counts[i] += 1
                missing -= 1
    return counts
