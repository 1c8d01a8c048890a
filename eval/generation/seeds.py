"""What seeds do and do not support: means with intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from vtc.errors import VTCError


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        sd: their standard deviation (n - 1).
        low, high: Student-t interval of the mean; the mean itself when there is one value.
        count: values.
    """

    mean: float
    sd: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 2) -> str:
        """`mean ± sd`."""
        return f"{self.mean:.{digits}f} ± {self.sd:.{digits}f}"


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean, spread and interval of `values`."""
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise VTCError(f"values: got {list(values)}, expected at least one finite number")
    mean = float(x.mean())
    if len(x) == 1:
        return Estimate(mean, 0.0, mean, mean, 1)
    sd = float(x.std(ddof=1))
    reach = float(stats.t.ppf(0.5 + confidence / 2, len(x) - 1)) * sd / len(x) ** 0.5
    return Estimate(mean, sd, mean - reach, mean + reach, len(x))


@dataclass(frozen=True)
class Comparison:
    """A minus B, seed by seed.

    Attributes:
        a, b: names.
        difference: with an interval that holds for all comparisons of its table together.
        wins: seeds in which A is larger.
    """

    a: str
    b: str
    difference: Estimate
    wins: int

    @property
    def separated(self) -> bool:
        """Whether the interval leaves out 0 (never with fewer than 3 seeds)."""
        return self.difference.count > 2 and self.difference.low * self.difference.high > 0

    def text(self, what: str, digits: int = 2) -> str:
        """One sentence for a reader."""
        d = self.difference
        numbers = (
            f"{d.mean:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}], "
            f"larger in {self.wins} of {d.count} seeds"
        )
        verdict = "" if self.separated else "; these seeds do not separate the two"
        return f"{what}, {self.a} minus {self.b}: {numbers}{verdict}."


def paired(
    a: Sequence[float],
    b: Sequence[float],
    names: tuple[str, str] = ("a", "b"),
    comparisons: int = 1,
    confidence: float = 0.95,
) -> Comparison:
    """Paired difference of two settings over the same seeds.

    Args:
        a: one value a seed.
        b: the same seeds in the same order.
        names: of both.
        comparisons: how many are made in one table; the interval is widened for them (Bonferroni).
        confidence: of all of them together.
    """
    if len(a) != len(b):
        raise VTCError(f"a, b: got {len(a)} and {len(b)} values, they need the same seeds")
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    each = 1 - (1 - confidence) / comparisons
    wins = int((difference > 0).sum())
    return Comparison(*names, estimate(difference.tolist(), each), wins)
