"""Neighbour count: kernel against twin in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.data import dtypes, mask, normal, ones, seeds
from vtc.kernels.neighbour_count import neighbour_count, neighbour_count_torch


@given(
    seed=seeds,
    tiles=st.integers(1, 2),
    patches=st.sampled_from([1, 2, 31, 64, 65, 100]),
    width=st.sampled_from([1, 6, 64, 70]),
    dtype=dtypes,
    strided=st.integers(0, 2),
    share=st.sampled_from([None, 0.0, 0.7]),
    alpha=st.sampled_from([-0.4, 0.1, 0.5]),
)
def test_counts(seed, tiles, patches, width, dtype, strided, share, alpha):
    keys = normal(seed, tiles, patches + 1, width, dtype=dtype, strided=strided)[:, 1:]
    valid = None if share is None else mask(seed, patches, tiles, share=share).t()
    got = neighbour_count(keys, alpha, valid)
    assert got.dtype == torch.int64
    # a similarity within rounding of the threshold may fall on either side
    low, high = (neighbour_count_torch(keys.double(), alpha + e, valid) for e in (1e-6, -1e-6))
    assert bool(((low <= got) & (got <= high)).all())


def test_equal_patches_zeros_and_no_patches():
    keys = ones(1, 70, 3)
    keys[0, 5] = 0  # like nothing, itself included
    want = ones(1, 70, dtype=torch.int64) * 68
    want[0, 5] = 0
    assert torch.equal(neighbour_count(keys, 0.99), want)
    assert neighbour_count(keys[:, :0], 0.5).shape == (1, 0)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_stands_in_padding_does_not_count(odd):
    keys, valid = normal(0, 2, 70, 6), mask(1, 2, 70)
    want = neighbour_count(keys, 0.1, valid)
    keys[~valid] = odd
    assert torch.equal(neighbour_count(keys, 0.1, valid), want) and not want[~valid].any()


def test_operator():
    arguments = normal(0, 2, 9, 5), 0.2, mask(0, 2, 9)
    torch.library.opcheck(torch.ops.vtc.neighbour_count, arguments)
    compiled = torch.compile(neighbour_count, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), neighbour_count_torch(*arguments))
