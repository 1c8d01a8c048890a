"""Attention received: kernels against twin in float64."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.data import dtypes, normal, ones, seeds, zeros
from vtc.kernels.attention_received import attention_received, attention_received_torch


@given(
    seed=seeds,
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    queries=st.sampled_from([None, 1, 40]),
    length=st.sampled_from([1, 2, 32, 33, 70]),
    width=st.sampled_from([1, 8, 20, 64]),
    dtype=dtypes,
    strided=st.integers(0, 2),
    size=st.sampled_from([0.0, 1.0, 20.0]),  # all ties; usual; peaked
)
def test_values(seed, batch, heads, queries, length, width, dtype, strided, size):
    keys = (
        normal(seed, batch, heads, length + 1, width, dtype=dtype, strided=strided)[:, :, 1:] * size
    )
    query = normal(seed + 1, batch, heads, queries or length, width, dtype=dtype, strided=strided)
    got = attention_received(query, keys, 0.3)
    want = attention_received_torch(query.double(), keys.double(), 0.3)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.sum(1), ones(batch), rtol=1e-4, atol=0)


def test_a_query_that_the_dtype_of_the_keys_cannot_hold():
    query, keys = normal(0, 1, 1, 6, 8) * 1e5, normal(1, 1, 1, 6, 8, dtype=torch.float16)
    got = attention_received(query, keys, 1e-5)
    torch.testing.assert_close(got, attention_received_torch(query, keys, 1e-5))


def test_no_tiles():
    empty = zeros(0, 2, 5, 8)
    assert attention_received(empty, empty, 1.0).shape == (0, 5)


def test_operator_and_gradients():
    query, keys = (normal(i, 1, 2, 9, 8).requires_grad_() for i in (0, 1))
    torch.library.opcheck(torch.ops.vtc.attention_received, (query, keys, 0.3))
    weight = normal(2, 1, 9)
    (attention_received(query, keys, 0.3) * weight).sum().backward()
    twin = [x.detach().double().requires_grad_() for x in (query, keys)]
    (attention_received_torch(*twin, 0.3) * weight).sum().backward()
    for mine, other in zip((query, keys), twin, strict=True):
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-6)
    compiled = torch.compile(attention_received, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, keys, 0.3), attention_received(query, keys, 0.3))
