"""Greedy picks: kernel against twin in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.data import dtypes, mask, normal, ones, seeds, tensor, whole
from vtc.kernels.greedy_pick import RULES, greedy_pick, greedy_pick_torch


def wide(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [x.double() if x is not None and x.is_floating_point() else x for x in tensors]


@given(
    rule=st.sampled_from(RULES),
    seed=seeds,
    images=st.integers(1, 3),
    size=st.sampled_from([1, 2, 31, 40, 64]),
    width=st.sampled_from([1, 6, 70]),
    most=st.sampled_from([1, 3, 20]),
    dtype=dtypes,
    strided=st.integers(0, 2),
    share=st.sampled_from([None, 0.0, 0.3, 0.8]),
    weighted=st.booleans(),
    balance=st.sampled_from([0.0, 0.5, 0.9]),
    together=st.sampled_from([1, 4]),
)
def test_picks(
    rule, seed, images, size, width, most, dtype, strided, share, weighted, balance, together
):
    rows = normal(seed, images, size, width, dtype=dtype, strided=strided)
    count = whole(seed, most + 1, images)
    weight = normal(seed + 1, images, size).abs() if weighted else None
    demand = normal(seed + 2, images, width).abs() if weighted else None
    valid = None if share is None else mask(seed, images, size, share=share)
    got = greedy_pick(rule, rows, count, most, weight, valid, demand, balance, together)
    inputs = wide(rows, count), wide(weight, valid, demand)
    want = greedy_pick_torch(rule, *inputs[0], most, *inputs[1], balance, together)
    assert got.dtype == torch.int64 and got.shape == (images, most)
    assert torch.equal(got < 0, want < 0)
    for mine, other, row in zip(got.tolist(), want.tolist(), range(images), strict=True):
        picked = [p for p in mine if p >= 0]
        assert len(set(picked)) == len(picked)
        assert valid is None or all(bool(valid[row, p]) for p in picked)
        if width == 70:  # in narrow spaces many candidates are alike, and rounding decides
            assert mine == other


@pytest.mark.parametrize("rule", RULES)
def test_ties_go_to_the_lower_index(rule):
    got = greedy_pick(rule, ones(1, 40, 4), tensor([5]), 5)
    assert got.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("rule", RULES)
def test_no_candidates_and_no_picks(rule):
    rows = normal(0, 2, 5, 3)
    assert greedy_pick(rule, rows[:, :0], tensor([2, 0]), 2).tolist() == [[-1, -1]] * 2
    assert greedy_pick(rule, rows, tensor([0, 0]), 0).shape == (2, 0)


def test_without_volume_weights_decide():
    """Three dimensions hold three picks."""
    rows, weight = normal(0, 1, 30, 3), normal(1, 1, 30).abs()
    got = greedy_pick("dpp", rows, tensor([30]), 30, weight)[0]
    rest = weight[0, got[3:]]
    assert sorted(got.tolist()) == list(range(30)) and bool((rest.diff() <= 0).all())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_stands_in_padding_is_not_picked(rule, odd):
    rows, weight, valid = normal(0, 2, 40, 70), normal(1, 2, 40).abs(), mask(2, 2, 40)
    count = tensor([9, 4])
    want = greedy_pick(rule, rows, count, 9, weight, valid)
    rows[~valid] = odd
    weight[~valid] = odd
    assert torch.equal(greedy_pick(rule, rows, count, 9, weight, valid), want)


@pytest.mark.parametrize("rule", RULES)
def test_operator(rule):
    rows = normal(0, 2, 9, 20)
    optional = normal(1, 2, 9).abs(), mask(0, 2, 9), normal(2, 2, 20).abs()
    arguments = rule, rows, tensor([3, 2]), 3, *optional, 0.5, 1
    torch.library.opcheck(torch.ops.vtc.greedy_pick, arguments)
    torch.library.opcheck(torch.ops.vtc.greedy_pick_torch, arguments)
    compiled = torch.compile(greedy_pick, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), greedy_pick_torch(*arguments))
