"""The CLS row: kernel against twin in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.data import dtypes, normal, seeds, zeros
from vtc.kernels.cls_attention import cls_attention, cls_attention_torch


@given(
    seed=seeds,
    batch=st.integers(1, 2),
    heads=st.sampled_from([1, 3, 4]),
    length=st.sampled_from([1, 2, 17, 128, 129, 200]),
    width=st.sampled_from([1, 8, 20, 64]),
    dtype=dtypes,
    strided=st.integers(0, 2),
    size=st.sampled_from([0.0, 1.0, 30.0]),  # all ties; usual; peaked
)
def test_values(seed, batch, heads, length, width, dtype, strided, size):
    keys = normal(seed, batch, heads, length, width, dtype=dtype, strided=strided) * size
    query = normal(seed + 1, batch, heads, 2, width, dtype=dtype)[:, :, 1]
    got = cls_attention(query, keys, 0.3)
    want = cls_attention_torch(query.double(), keys.double(), 0.3)
    for mine, twin in zip(got, want, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), twin, rtol=1e-4, atol=2e-5)


def test_no_tiles():
    logits, probabilities = cls_attention(zeros(0, 2, 8), zeros(0, 2, 5, 8), 1.0)
    assert logits.shape == probabilities.shape == (0, 5)


@pytest.mark.parametrize("length", [3, 140])
def test_operator_and_gradients(length):
    query = normal(0, 1, 2, 8).requires_grad_()
    keys = normal(1, 1, 2, length, 8).requires_grad_()
    torch.library.opcheck(torch.ops.vtc.cls_attention, (query, keys, 0.3))
    weight = normal(2, 2, 1, length)
    (torch.stack(cls_attention(query, keys, 0.3)) * weight).sum().backward()
    twin = [x.detach().double().requires_grad_() for x in (query, keys)]
    (torch.stack(cls_attention_torch(*twin, 0.3)) * weight).sum().backward()
    for mine, other in zip((query, keys), twin, strict=True):
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-6)


def test_compiled_without_a_break():
    query, keys = normal(0, 2, 2, 8), normal(1, 2, 2, 9, 8)
    compiled = torch.compile(cls_attention, fullgraph=True, backend="aot_eager")
    for mine, eager in zip(
        compiled(query, keys, 0.3), cls_attention(query, keys, 0.3), strict=True
    ):
        assert torch.equal(mine, eager)
