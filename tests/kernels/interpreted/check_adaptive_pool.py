"""Adaptive pooling: kernel and its gradient against twin in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.check_merge import EPS
from tests.kernels.interpreted.data import dtypes, mask, normal, seeds
from vtc.kernels.adaptive_pool import adaptive_pool, adaptive_pool_torch


@given(
    seed=seeds,
    tiles=st.integers(1, 2),
    grid=st.sampled_from([(1, 1), (1, 5), (4, 3), (6, 7), (9, 9)]),
    bins=st.sampled_from([(1, 1), (2, 3), (4, 4), (8, 2)]),
    width=st.sampled_from([1, 5, 256, 260]),
    dtype=dtypes,
    strided=st.integers(0, 2),
    share=st.sampled_from([None, 0.0, 0.6]),
)
def test_values(seed, tiles, grid, bins, width, dtype, strided, share):
    size = grid[0] * grid[1]
    features = normal(seed, tiles, size, width, dtype=dtype, strided=strided)
    valid = None if share is None else mask(seed, size, tiles, share=share).t()
    got, count = adaptive_pool(features, grid, bins, valid)
    want, number = adaptive_pool_torch(features.double(), grid, bins, valid)
    assert got.dtype == dtype and count.dtype == torch.float32
    assert torch.equal(count.double(), number)
    torch.testing.assert_close(got.double(), want, rtol=EPS[dtype], atol=EPS[dtype])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bins", [(2, 2), (3, 4), (7, 5)])
def test_gradients(masked, bins):
    grid = (5, 6)
    valid = mask(1, 2, 30) if masked else None
    features = normal(0, 2, 30, 3).requires_grad_()
    factor = normal(1, 2, bins[0] * bins[1], 3)
    (adaptive_pool(features, grid, bins, valid)[0] * factor).sum().backward()
    twin = features.detach().double().requires_grad_()
    (adaptive_pool_torch(twin, grid, bins, valid)[0] * factor).sum().backward()
    torch.testing.assert_close(features.grad.double(), twin.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_operator(masked):
    features = normal(0, 2, 6, 3).requires_grad_()
    valid = mask(1, 2, 6) if masked else None
    torch.library.opcheck(torch.ops.vtc.adaptive_pool, (features, 2, 3, 1, 2, valid))
    compiled = torch.compile(adaptive_pool, fullgraph=True, backend="aot_eager")
    got = compiled(features, (2, 3), (1, 2), valid)[0]
    assert torch.equal(got, adaptive_pool(features, (2, 3), (1, 2), valid)[0])


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_stands_in_padding_does_not_count(odd):
    features, valid = normal(0, 2, 12, 3), mask(1, 2, 12)
    features[~valid] = odd
    zeros = features.masked_fill(~valid[..., None], 0)
    for pool in (adaptive_pool, adaptive_pool_torch):
        mine, clean = features.clone().requires_grad_(), zeros.clone().requires_grad_()
        got, want = pool(mine, (3, 4), (2, 3), valid)[0], pool(clean, (3, 4), (2, 3), valid)[0]
        assert torch.equal(got, want)
        got.sum().backward()
        want.sum().backward()
        assert torch.equal(mine.grad, clean.grad)
        assert not mine.grad[~valid].any() and mine.grad.isfinite().all()
