"""How sure a score is: intervals, tests and sentences about accuracies and their differences.

Questions about one image stand or fall together, so images ("clusters") are the independent units:
every draw below takes whole clusters. Everything is a ratio of two sums over clusters, such as
points scored over questions asked, and all ratios of a call are drawn from the same clusters, which
makes comparisons paired.

- Intervals: bootstrap over clusters, bias-corrected and accelerated (Efron 1987, "Better bootstrap
  confidence intervals"), which keeps its coverage near 0 and 100 % better than plain percentiles.
- Tests: the signs of the clusters' differences are flipped at random (Fisher's randomisation test).
  It is exact when the two settings are exchangeable, however few clusters differ.
- Many comparisons at once: Holm (1979, "A simple sequentially rejective multiple test procedure").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vtc.errors import VTCError

Array = np.ndarray

LEVEL = 0.95  # of every interval
RESAMPLES = 10_000
FEW = 20  # clusters; with fewer the intervals are too narrow
CELLS = 4_000_000  # most numbers of a drawn matrix at once


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval at `LEVEL`.

    Attributes:
        value: the figure; nan when there is nothing to take it from.
        low, high: bounds; nan where the data cannot give any.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two settings on the questions that both answered.

    Attributes:
        first, second: their names.
        difference: accuracy of `first` less that of `second`, from -1 to 1.
        p: two-sided, of there being no difference.
        adjusted: `p` after `holm`, over all comparisons that were made together.
        questions, clusters: how many it rests on.
    """

    first: str
    second: str
    difference: Interval
    p: float
    adjusted: float
    questions: int
    clusters: int

    @property
    def verdict(self) -> str:
        """ "better", "worse", "unclear" (the interval leaves out 0, but the test does not hold
        among so many comparisons, or the other way round) or "none" (no evidence)."""
        apart = self.difference.low > 0 or self.difference.high < 0
        sure = self.adjusted < 1 - LEVEL
        if apart and sure:
            return "better" if self.difference.value > 0 else "worse"
        return "unclear" if apart or sure else "none"


def by_cluster(scores: Array, clusters: Sequence[str]) -> tuple[Array, Array]:
    """Sums and counts of the clusters.

    Args:
        scores: `[..., questions]`, nan where a question was not answered.
        clusters: cluster of each question.

    Returns:
        Points scored and questions answered, each `[..., clusters]`.
    """
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    order = np.argsort(index, kind="stable")
    starts = np.flatnonzero(np.diff(index[order], prepend=-1))
    ordered = scores[..., order]
    answered = ~np.isnan(ordered)
    return (
        np.add.reduceat(np.where(answered, ordered, 0.0), starts, axis=-1),
        np.add.reduceat(answered.astype(float), starts, axis=-1),
    )


def standard_error(scores: Sequence[float], clusters: Sequence[str]) -> float:
    """Of the mean score; whole clusters are the independent units.

    Args:
        scores, clusters: of each question.
    """
    sums, counts = by_cluster(np.asarray(scores, dtype=float), clusters)
    spread = sums - counts * (sum(scores) / len(scores))
    return math.sqrt((spread**2).sum()) / len(scores)


def intervals(
    sums: Array,
    counts: Array,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """`sums / counts` over all clusters, with bootstrap intervals.

    Where every cluster has the same value (all right, no difference anywhere) a bootstrap sees no
    spread. The interval then says what the clusters can rule out: with `x` the exact binomial upper
    bound of a share that was seen 0 times in so many clusters, the value moves by `x` of its way to
    each bound.

    Args:
        sums, counts: `[figures, clusters]`.
        bounds: of a cluster's `sum / count`; None when it has none, the interval is nan then.
        resamples: drawn sets of clusters.
        seed: of the draws.

    Raises:
        VTCError: the shapes differ, or there is not one cluster.
    """
    if sums.ndim != 2 or sums.shape != counts.shape or not sums.shape[1]:
        raise VTCError(
            f"sums: got {sums.shape} with counts {counts.shape}, expected [figures, clusters] twice"
        )
    drawn = _resampled(sums.shape[1], resamples, seed)
    draws = np.concatenate([_ratio(times @ sums.T, times @ counts.T) for times in drawn])
    return [
        _interval(one, of, column, bounds)
        for one, of, column in zip(sums, counts, draws.T, strict=True)
    ]


def _resampled(clusters: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each cluster is drawn: `[some resamples, clusters]`, a chunk at a time."""
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS // clusters)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(0, clusters, (rows, clusters)) + clusters * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * clusters)
        yield times.reshape(rows, clusters).astype(float)


def _ratio(sums: Array, counts: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 0, sums / counts, np.nan)


def _interval(
    sums: Array, counts: Array, draws: Array, bounds: tuple[float, float] | None
) -> Interval:
    from scipy.stats import binomtest, norm

    used = counts > 0
    sums, counts = sums[used], counts[used]
    if not len(counts):
        return Interval(math.nan, math.nan, math.nan)
    value = float(sums.sum() / counts.sum())
    each = sums / counts
    if np.ptp(each) < 1e-12:
        if bounds is None:
            return Interval(value, math.nan, math.nan)
        unseen = binomtest(0, len(counts)).proportion_ci(LEVEL).high
        low, high = (value + unseen * (bound - value) for bound in bounds)
        return Interval(value, float(low), float(high))
    draws = draws[~np.isnan(draws)]
    below = ((draws < value).mean() + (draws <= value).mean()) / 2
    bias = norm.ppf(np.clip(below, 1 / (len(draws) + 1), len(draws) / (len(draws) + 1)))
    without = _ratio(sums.sum() - sums, counts.sum() - counts)  # jackknife
    skew = without.mean() - without
    spread = (skew**2).sum()
    acceleration = (skew**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    z = bias + norm.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = np.quantile(draws, norm.cdf(bias + z / np.maximum(1 - acceleration * z, 1e-6)))
    return Interval(value, float(low), float(high))


def compare(
    scores: Array,
    clusters: Sequence[str],
    names: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """Differences between settings; the pairs are one family for `holm`.

    Args:
        scores: `[settings, questions]`, nan where a question was not answered. Of a method that
            draws, the mean over its seeds: each question then counts once.
        clusters: cluster of each question.
        names: of the settings.
        pairs: which to compare. Pairs without a common question are left out.
        resamples, seed: of both the intervals and the tests. Tests draw 40 times a pair at least, or
            the correction would leave no p-value below 5 %.
    """
    differences = np.array([scores[one] - scores[two] for one, two in pairs])
    asked = [row for row in range(len(pairs)) if not np.isnan(differences[row]).all()]
    if not asked:
        return []
    sums, counts = by_cluster(differences[asked], clusters)
    found = intervals(sums, counts, (-1.0, 1.0), resamples, seed)
    raw = _flipped(sums, max(resamples, 40 * len(pairs)), seed)
    return [
        Comparison(
            names[pairs[row][0]], names[pairs[row][1]], interval, p, adjusted,
            int(count.sum()), int((count > 0).sum()),
        )
        for row, interval, p, adjusted, count in zip(
            asked, found, raw, holm(raw), counts, strict=True
        )
    ]  # fmt: skip


def _flipped(sums: Array, resamples: int, seed: int) -> list[float]:
    """Two-sided p-values of the clusters' summed differences, `[pairs, clusters]`."""
    rng = np.random.default_rng(seed)
    seen = np.abs(sums.sum(1)) - 1e-9  # equal sums count as extreme, whatever their rounding
    extreme = np.zeros(len(sums))
    at_once = max(1, CELLS // sums.shape[1])
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        signs = rng.integers(0, 2, (rows, sums.shape[1])) * 2.0 - 1.0
        extreme += (np.abs(signs @ sums.T) >= seen).sum(0)
    return [float(p) for p in (extreme + 1) / (resamples + 1)]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: the chance of one false claim in the family stays below alpha."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = running
    return [float(value) for value in adjusted]


def over_seeds(scores: Array) -> tuple[Array, float]:
    """A method that draws: its mean score of each question, and how far the draws lie apart.

    Args:
        scores: `[seeds, questions]`, nan where a question was not answered.

    Returns:
        `[questions]`, the mean over the seeds that answered; and the standard deviation of the
        seeds' accuracies on the questions that all of them answered (nan for one seed).
    """
    answered = ~np.isnan(scores)
    mean = _ratio(np.where(answered, scores, 0.0).sum(0), answered.sum(0))
    common = answered.all(0)
    if len(scores) < 2 or not common.any():
        return mean, math.nan
    return mean, float(scores[:, common].mean(1).std(ddof=1))


# -- in words ----------------------------------------------------------------------------------


def sentence(comparison: Comparison, where: str = "") -> str:
    """What a comparison says, such as "a is better than b by 4.1 points [2.0, 6.3] at 25 %".

    Args:
        where: closes the first clause.
    """
    one, two = comparison.first, comparison.second
    interval = comparison.difference
    where = f" {where}" if where else ""
    size = points(abs(interval.value))
    if comparison.verdict in ("better", "worse"):
        low, high = sorted((abs(interval.low), abs(interval.high)))
        bounds = f"[{points(low)}, {points(high)}]"
        return f"{one} is {comparison.verdict} than {two} by {size} points {bounds}{where}."
    found = f"{signed(interval.value)} points [{signed(interval.low)}, {signed(interval.high)}]"
    if comparison.verdict == "unclear":
        apart = interval.low > 0 or interval.high < 0
        why = "it does not hold among so many comparisons" if apart else "the interval includes 0"
        return f"Weak evidence of a difference between {one} and {two}{where}: {found}; {why}."
    widest = max(abs(interval.low), abs(interval.high))
    limit = math.ceil(200 * widest - 1e-9) / 2  # next half point
    return (
        f"No evidence of a difference between {one} and {two}{where}: {found}; differences above "
        f"{limit:g} points are unlikely."
    )


def points(share: float) -> str:
    """A share as percentage points."""
    return f"{100 * share:.1f}"


def signed(share: float) -> str:
    """A difference of shares as percentage points, never "-0.0"."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text
