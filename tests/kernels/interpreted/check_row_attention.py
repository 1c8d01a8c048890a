"""Attention of a few rows: kernels against twin in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.data import dtypes, mask, normal, seeds, zeros
from vtc.kernels.row_attention import row_attention, row_attention_torch


@given(
    seed=seeds,
    batch=st.integers(1, 2),
    groups=st.integers(1, 2),
    shared=st.sampled_from([1, 2, 7]),
    rows=st.sampled_from([1, 3, 17]),
    length=st.sampled_from([1, 2, 32, 65, 70]),
    width=st.sampled_from([1, 8, 20, 64]),
    dtype=dtypes,
    strided=st.integers(0, 2),
    size=st.sampled_from([0.0, 1.0, 20.0]),  # all ties; usual; peaked
    share=st.sampled_from([None, 0.0, 0.1, 0.7]),
    mean=st.booleans(),
    softcap=st.sampled_from([None, 2.0, 50.0]),
)
def test_values(
    seed, batch, groups, shared, rows, length, width, dtype, strided, size, share, mean, softcap
):
    keys = normal(seed, batch, groups, length, width, dtype=dtype, strided=strided) * size
    query = normal(seed + 1, batch, groups * shared, rows, width, dtype=dtype, strided=strided)
    allowed = None if share is None else mask(seed, batch, rows, length, share=share)
    got = row_attention(query, keys, 0.3, allowed, mean, softcap)
    want = row_attention_torch(query.double(), keys.double(), 0.3, allowed, mean, softcap)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)
    if allowed is not None:
        there = allowed.any(-1).double()
        there = there if mean else there[:, None].expand(-1, groups * shared, -1)
        torch.testing.assert_close(got.double().sum(-1), there, rtol=1e-4, atol=0)
        assert not bool(got[~(allowed if mean else allowed[:, None].expand_as(got))].any())


@pytest.mark.parametrize("mean", [False, True])
def test_masks_as_models_make_them(mean):
    """An expanded mask, and one that is a slice of a larger one."""
    query, keys = normal(0, 2, 4, 3, 16), normal(1, 2, 2, 40, 16)
    causal = torch.ones(50, 50, dtype=torch.bool, device=keys.device).tril()[[4, 20, 39], :40]
    for allowed in (causal.expand(2, -1, -1), mask(3, 2, 5, 80)[:, 1:4, ::2]):
        got = row_attention(query, keys, 0.25, allowed, mean)
        want = row_attention_torch(query.double(), keys.double(), 0.25, allowed, mean)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)


def test_a_query_that_the_dtype_of_the_keys_cannot_hold():
    query, keys = normal(0, 1, 1, 6, 8) * 1e5, normal(1, 1, 1, 6, 8, dtype=torch.float16)
    got = row_attention(query, keys, 1e-5)
    torch.testing.assert_close(got, row_attention_torch(query, keys, 1e-5))


def test_no_sequences():
    empty = zeros(0, 2, 5, 8)
    assert row_attention(empty, empty, 1.0).shape == (0, 2, 5, 5)
    assert row_attention(empty, empty, 1.0, mean=True).shape == (0, 5, 5)


def test_operator_and_gradients():
    query, keys = normal(0, 1, 4, 3, 8).requires_grad_(), normal(1, 1, 2, 9, 8).requires_grad_()
    allowed = mask(0, 1, 3, 9)
    for each in ((allowed, True, 50.0), (None, False, None)):
        torch.library.opcheck(torch.ops.vtc.row_attention, (query, keys, 0.3, *each))
    weight = normal(2, 1, 3, 9)
    (row_attention(query, keys, 0.3, allowed, True) * weight).sum().backward()
    twin = [x.detach().double().requires_grad_() for x in (query, keys)]
    (row_attention_torch(*twin, 0.3, allowed, True) * weight).sum().backward()
    for mine, other in zip((query, keys), twin, strict=True):
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-6)
    compiled = torch.compile(row_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(query, keys, 0.3, allowed), row_attention(query, keys, 0.3, allowed)
    )
