"""Intervals cover, tests do not cry wolf, and the sentences say what the numbers say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from vtc.errors import VTCError
from vtc.eval.common import statistics
from vtc.eval.common.statistics import (
    Comparison,
    Interval,
    by_cluster,
    compare,
    holm,
    intervals,
    over_seeds,
    sentence,
    standard_error,
)


def test_the_standard_error_counts_clusters_not_questions():
    # two scenes, one all right and one all wrong: sqrt(1^2 + 1^2) / 4
    assert standard_error([1, 1, 0, 0], ["0", "0", "1", "1"]) == pytest.approx(2**0.5 / 4)
    assert standard_error([1, 0, 1, 0], ["0", "0", "1", "1"]) == 0


def ability(rng, clusters, mean, correlation=0.25, most=12):
    """Questions of images of different difficulty: the chance of a right answer, the image."""
    sizes = rng.integers(1, most, clusters)
    spread = (1 - correlation) / correlation
    chance = rng.beta(mean * spread, (1 - mean) * spread, clusters)
    return np.repeat(chance, sizes), np.repeat(np.arange(clusters), sizes).astype(str)


def answers(rng, chance):
    return (rng.random(chance.shape) < chance).astype(float)


def test_sums_of_clusters():
    scores = np.array([[1, 0, 1, np.nan, 1], [0, 0, np.nan, np.nan, 0.5]])
    sums, counts = by_cluster(scores, ["b", "a", "b", "a", "c"])
    assert sums.tolist() == [[0, 2, 1], [0, 0, 0.5]]
    assert counts.tolist() == [[1, 2, 1], [1, 1, 1]]


@pytest.mark.parametrize("mean", [0.6, 0.9])
def test_intervals_of_accuracy_cover_the_truth(mean):
    """95 % intervals: between 92 and 97 % of 1000 experiments. Counting questions as independent
    covers far less often, so the test can tell."""
    rng = np.random.default_rng(1)
    hits = naive = 0
    for _ in range(1000):
        chance, clusters = ability(rng, 80, mean)
        scores = answers(rng, chance)
        (found,) = intervals(*by_cluster(scores[None], clusters), resamples=600)
        hits += found.low <= mean <= found.high
        naive += abs(scores.mean() - mean) < 1.96 * scores.std() / math.sqrt(len(scores))
    assert 0.92 <= hits / 1000 <= 0.97
    assert naive / 1000 < 0.9


def test_intervals_of_a_paired_difference_cover_the_truth():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(1000):
        chance, clusters = ability(rng, 80, 0.7)
        pair = np.array([answers(rng, chance), answers(rng, 0.9 * chance)])
        (found,) = compare(pair, clusters, ["a", "b"], [(0, 1)], resamples=600)
        hits += found.difference.low <= 0.07 <= found.difference.high
    assert 0.92 <= hits / 1000 <= 0.97


def test_equal_methods_are_not_told_apart():
    """Five methods of the same ability, ten comparisons: at least one false claim in at most 5 % of
    the experiments, some noise allowed. Without Holm's correction it would be far more."""
    rng = np.random.default_rng(3)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    claims = uncorrected = 0
    for _ in range(400):
        chance, clusters = ability(rng, 60, 0.75)
        scores = answers(rng, np.tile(chance, (5, 1)))
        found = compare(scores, clusters, list("abcde"), pairs, resamples=999)
        claims += any(c.verdict in ("better", "worse") for c in found)
        uncorrected += any(c.p < 0.05 for c in found)
    assert claims / 400 <= 0.08
    assert uncorrected / 400 > 0.15


def test_a_real_difference_is_found():
    rng = np.random.default_rng(4)
    chance, clusters = ability(rng, 250, 0.8)
    scores = np.array([answers(rng, chance), answers(rng, 0.9 * chance)])
    (found,) = compare(scores, clusters, ["full", "half"], [(0, 1)])
    assert found.verdict == "better" and found.p < 0.001
    (other,) = compare(scores, clusters, ["full", "half"], [(1, 0)])
    assert other.verdict == "worse"
    assert other.difference.value == pytest.approx(-found.difference.value)


def test_pairing_counts():
    """The same small difference is clear when both answer alike and unclear when they do not."""
    rng = np.random.default_rng(5)
    chance, clusters = ability(rng, 200, 0.6)
    one = answers(rng, chance)
    few_lost = np.where(rng.random(len(one)) < 0.05, 0.0, one)
    (paired,) = compare(np.array([one, few_lost]), clusters, ["a", "b"], [(0, 1)])
    assert paired.verdict == "better"
    again = answers(rng, chance)
    shift = paired.difference.value - (one.mean() - again.mean())
    (apart,) = compare(np.array([one, again - shift]), clusters, ["a", "b"], [(0, 1)])
    assert apart.difference.value == pytest.approx(paired.difference.value)
    width = [c.difference.high - c.difference.low for c in (paired, apart)]
    assert apart.verdict != "better" and width[1] > 1.5 * width[0]


def test_interval_and_p_against_scipy():
    rng = np.random.default_rng(6)
    chance, clusters = ability(rng, 40, 0.9)
    scores = np.array([answers(rng, chance), answers(rng, 0.93 * chance)])
    sums, counts = by_cluster(scores, clusters)
    ours = intervals(sums, counts, resamples=20_000)
    for row in (0, 1):
        theirs = stats.bootstrap(
            (sums[row], counts[row]),
            lambda s, n, axis: s.sum(axis) / n.sum(axis),
            paired=True,
            n_resamples=20_000,
            method="BCa",
            rng=np.random.default_rng(7),
        ).confidence_interval
        assert (ours[row].low, ours[row].high) == pytest.approx(theirs, abs=0.004)
    (found,) = compare(scores, clusters, ["a", "b"], [(0, 1)], resamples=20_000)
    theirs = stats.permutation_test(
        (sums[0] - sums[1],),
        lambda d, axis: d.sum(axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(8),
    )
    assert found.p == pytest.approx(theirs.pvalue, abs=0.012)


def test_no_spread_is_not_certainty():
    """All right in 50 images: by the exact binomial bound up to 7.1 % could still go wrong."""
    clusters = np.repeat(np.arange(50), 2).astype(str)
    (found,) = intervals(*by_cluster(np.ones((1, 100)), clusters))
    assert found.value == found.high == 1.0
    assert found.low == pytest.approx(stats.binomtest(50, 50).proportion_ci().low)
    (same,) = compare(np.ones((2, 100)), clusters, ["a", "b"], [(0, 1)])
    assert same.verdict == "none" and same.p == 1.0
    assert -same.difference.low == same.difference.high == pytest.approx(1 - found.low)
    (unbounded,) = intervals(*by_cluster(np.ones((1, 100)), clusters), bounds=None)
    assert unbounded.value == 1 and math.isnan(unbounded.low)


def test_missing_answers_leave_the_pair():
    scores = np.array([[1, 1, 0, np.nan], [0, np.nan, 0, 1], [np.nan] * 4])
    names = ["a", "b", "never asked"]
    (found,) = compare(scores, list("1234"), names, [(0, 1), (0, 2)], resamples=100)
    assert (found.first, found.second, found.questions, found.clusters) == ("a", "b", 2, 2)
    assert found.difference.value == 0.5
    assert compare(scores, list("1234"), names, [(0, 2)]) == []


def test_holm():
    # the example of the paper's idea worked by hand: 4 * .01, 3 * .02, 2 * .04 -> running maximum
    assert holm([0.02, 0.01, 0.9, 0.04]) == pytest.approx([0.06, 0.04, 0.9, 0.08])
    assert holm([0.03, 0.03]) == pytest.approx([0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_seeds_are_averaged_within_a_question():
    scores = np.array([[1, 0, 1, 1], [1, 1, 0, np.nan], [1, 0, 0, np.nan]])
    mean, spread = over_seeds(scores)
    assert mean == pytest.approx([1, 1 / 3, 1 / 3, 1])
    assert spread == pytest.approx(np.std([2 / 3, 2 / 3, 1 / 3], ddof=1))
    assert math.isnan(over_seeds(scores[:1])[1])
    with np.errstate(all="raise"):
        assert math.isnan(over_seeds(np.full((2, 1), np.nan))[0][0])


def test_the_same_seed_gives_the_same_numbers(monkeypatch):
    rng = np.random.default_rng(9)
    chance, clusters = ability(rng, 40, 0.8)
    scores = answers(rng, np.tile(chance, (3, 1)))
    arguments = (scores, clusters, ["a", "b", "c"], [(0, 1), (1, 2)])
    whole = compare(*arguments, resamples=500)
    assert compare(*arguments, resamples=500) == whole
    assert compare(*arguments, resamples=500, seed=1) != whole
    monkeypatch.setattr(statistics, "CELLS", 1_000)  # a matrix is drawn in pieces
    pieces = compare(*arguments, resamples=500)
    assert [c.difference for c in pieces] == [c.difference for c in whole]
    assert [c.p for c in pieces] == [c.p for c in whole]


def test_a_large_family_can_still_find_something():
    """However few draws are asked for, a clear difference among many pairs is called one."""
    scores = np.array([np.ones(80), np.zeros(80)])
    found = compare(scores, list(map(str, range(80))), ["a", "b"], [(0, 1)] * 50, resamples=10)
    assert {c.verdict for c in found} == {"better"}


def test_shapes_are_checked():
    with pytest.raises(VTCError, match=r"sums: got \(1, 3\) with counts \(1, 2\)"):
        intervals(np.ones((1, 3)), np.ones((1, 2)))


def comparison(value, low, high, adjusted, first="a", second="b"):
    return Comparison(first, second, Interval(value, low, high), adjusted, adjusted, 100, 20)


def test_sentences():
    better = comparison(0.0412, 0.0198, 0.063, 0.001, "globalcom2", "random")
    assert sentence(better, "at 25 %") == (
        "globalcom2 is better than random by 4.1 points [2.0, 6.3] at 25 %."
    )
    assert sentence(comparison(-0.0412, -0.063, -0.0198, 0.001)) == (
        "a is worse than b by 4.1 points [2.0, 6.3]."
    )
    assert sentence(comparison(-0.004, -0.0194, 0.0112, 0.6), "at 10 %") == (
        "No evidence of a difference between a and b at 10 %: -0.4 points [-1.9, +1.1]; "
        "differences above 2 points are unlikely."
    )
    assert sentence(comparison(0.0, -0.015, 0.015, 1.0)).endswith(
        "0.0 points [-1.5, +1.5]; differences above 1.5 points are unlikely."
    )
    weak = sentence(comparison(0.02, 0.001, 0.039, 0.3))
    assert weak == (
        "Weak evidence of a difference between a and b: +2.0 points [+0.1, +3.9]; it does not "
        "hold among so many comparisons."
    )
    assert sentence(comparison(0.02, -0.001, 0.041, 0.01)).endswith("; the interval includes 0.")
