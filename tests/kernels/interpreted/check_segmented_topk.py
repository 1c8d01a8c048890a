"""Segmented top-k: kernel against twin, number for number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.data import dtypes, mask, normal, seeds, tensor, whole, zeros
from vtc.kernels._ordering import LONGEST
from vtc.kernels.segmented_topk import segmented_topk, segmented_topk_torch


def same(scores, k, valid):
    got, want = segmented_topk(scores, k, valid), segmented_topk_torch(scores, k, valid)
    for mine, twin in zip(got, want, strict=True):
        assert mine.dtype == twin.dtype and torch.equal(mine, twin)


@given(
    seed=seeds,
    rows=st.integers(1, 3),
    size=st.sampled_from([1, 2, 3, 31, 64, 100]),
    dtype=dtypes,
    strided=st.integers(0, 2),
    levels=st.sampled_from([0, 1, 5, 10**6]),  # 0 and 1: all ties
    share=st.sampled_from([None, 0.0, 0.5, 1.0]),
)
def test_order_and_choice(seed, rows, size, dtype, strided, levels, share):
    scores = (normal(seed, rows, size, dtype=dtype, strided=strided) * levels).round()
    scores[mask(seed + 2, rows, size, share=0.1)] = -torch.inf
    scores[mask(seed + 3, rows, size, share=0.1)] = torch.inf
    k = whole(seed, size + 3, rows)
    valid = None if share is None else mask(seed, size, rows, share=share).t()
    same(scores, k, valid)


def test_zeros_of_both_signs_tie_and_nan_comes_first():
    scores = tensor([[0.0, -0.0, 1.0, torch.nan, -0.0, 0.0, -1e-45, -torch.nan]])
    same(scores, tensor([4]), None)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_stands_in_padding_is_not_chosen(odd):
    scores, valid = normal(0, 2, 70), mask(1, 2, 70)
    k = tensor([7, 70])
    want = segmented_topk(scores, k, valid)[1]
    scores[~valid] = odd
    assert torch.equal(segmented_topk(scores, k, valid)[1], want) and not want[~valid].any()


def test_no_rows_and_no_entries():
    for shape in ((0, 5), (3, 0)):
        same(zeros(shape), zeros(shape[0], dtype=torch.int64), None)


def test_rows_that_are_too_long_go_to_the_twin():
    scores = normal(0, 1, LONGEST + 1)
    same(scores, tensor([5]), None)


def test_operator():
    arguments = normal(0, 2, 9), tensor([1, 4]), mask(0, 2, 9)
    torch.library.opcheck(torch.ops.vtc.segmented_topk, arguments)
    compiled = torch.compile(segmented_topk, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments)[1], segmented_topk_torch(*arguments)[1])


def test_a_masked_row_with_tritons_sort():
    same(normal(0, 1, 20).round(), tensor([3]), mask(0, 1, 20))
