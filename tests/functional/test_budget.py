"""Shares of a budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtc import VTCError
from vtc.functional.budget import apportion

tiles = st.lists(
    st.tuples(st.floats(0, 1e3, allow_subnormal=False), st.integers(0, 600)),
    min_size=1,
    max_size=12,
)


@given(tiles, st.floats(0, 1))
def test_shares_sum_to_the_total_within_capacities(rows, part):
    weights, capacity = zip(*rows, strict=True)
    total = round(sum(capacity) * part)
    counts = apportion(weights, capacity, total).tolist()
    assert sum(counts) == total
    assert all(0 <= c <= most for c, most in zip(counts, capacity, strict=True))


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=8), st.integers(0, 500))
def test_without_capacities_in_the_way_shares_are_within_one_of_proportional(weights, total):
    counts = apportion(weights, [1000] * len(weights), total).tolist()
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1 + 1e-6


def test_equal_remainders_go_to_the_lower_index():
    assert apportion([1, 1, 1], [9, 9, 9], 5).tolist() == [2, 2, 1]
    assert apportion([0.1 + 0.2, 0.3, 0.3], [9, 9, 9], 4).tolist() == [2, 1, 1]


def test_excess_over_a_capacity_goes_to_the_others_in_proportion():
    assert apportion([8, 1, 3], [2, 9, 9], 10).tolist() == [2, 2, 6]


def test_weight_zero_gets_something_only_when_the_others_are_full():
    assert apportion([1, 0, 0], [4, 6, 2], 4).tolist() == [4, 0, 0]
    assert apportion([1, 0, 0], [4, 6, 2], 8).tolist() == [4, 3, 1]


def test_a_total_that_does_not_fit_is_an_error():
    with pytest.raises(VTCError, match="total: got 11, allowed are 0 to 10"):
        apportion([1, 1], [5, 5], 11)
    with pytest.raises(VTCError, match="weights"):
        apportion([1, float("nan")], [5, 5], 3)


@given(st.lists(tiles, min_size=1, max_size=4), st.floats(0, 1))
def test_rows_are_independent(rows, part):
    width = max(map(len, rows))
    padded = [row + [(0.0, 0)] * (width - len(row)) for row in rows]
    weights, capacity = ([[pair[i] for pair in row] for row in padded] for i in (0, 1))
    totals = [round(sum(most) * part) for most in capacity]
    together = apportion(weights, capacity, totals).tolist()
    alone = [apportion(*one).tolist() for one in zip(weights, capacity, totals, strict=True)]
    assert together == alone
