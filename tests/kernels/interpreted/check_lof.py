"""Local outlier factor: kernel against twin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.data import dtypes, mask, normal, seeds, zeros
from vtc.kernels.lof import local_outlier_factor, local_outlier_factor_torch


@given(
    seed=seeds,
    rows=st.integers(1, 3),
    size=st.sampled_from([1, 2, 3, 31, 64, 100]),
    k=st.sampled_from([1, 2, 10, 200]),
    dtype=dtypes,
    strided=st.integers(0, 2),
    levels=st.sampled_from([0, 1, 7, None]),  # whole numbers: ties, many duplicates
    share=st.sampled_from([None, 0.0, 0.05, 0.7, 1.0]),
)
def test_values(seed, rows, size, k, dtype, strided, levels, share):
    values = normal(seed, rows, size, dtype=dtype, strided=strided)
    if levels is not None:
        values = (values * levels).round()
    valid = None if share is None else mask(seed, size, rows, share=share).t()
    got = local_outlier_factor(values, k, valid)
    # numbers of at most 8 significant bits: the twin's decisions are the same in float32 and 64
    for reference, tolerance in ((values, 1e-5), (values.double(), 1e-4)):
        want = local_outlier_factor_torch(reference, k, valid)
        if dtype != torch.float32 or levels is not None or reference.dtype == torch.float32:
            torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=1e-6)


def test_attention_like_values():
    values = torch.softmax(normal(3, 2, 300) * 2, -1)
    got = local_outlier_factor(values, 20)
    want = local_outlier_factor_torch(values.double(), 20)
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=0)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_stands_in_padding_does_not_count(odd):
    values, valid = normal(0, 2, 70), mask(1, 2, 70)
    want = local_outlier_factor(values, 5, valid)
    values[~valid] = odd
    assert torch.equal(local_outlier_factor(values, 5, valid), want)


def test_no_rows_and_no_values():
    for shape in ((0, 5), (3, 0)):
        assert local_outlier_factor(zeros(shape), 4).shape == shape


def test_operator():
    arguments = normal(0, 2, 9), 3, mask(0, 2, 9)
    torch.library.opcheck(torch.ops.vtc.local_outlier_factor, arguments)
    compiled = torch.compile(local_outlier_factor, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), local_outlier_factor_torch(*arguments))
