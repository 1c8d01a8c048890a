"""Weighted merge: kernel and its gradients against twin in float64."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.data import dtypes, normal, seeds, tensor, whole
from vtc.kernels.merge import weighted_merge, weighted_merge_torch

EPS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def entries(seed, count, sources, outputs):
    return whole(seed, outputs, count), whole(seed + 1, sources, count), normal(seed, count)


@given(
    seed=seeds,
    sources=st.sampled_from([1, 7, 30]),
    outputs=st.sampled_from([1, 5]),
    count=st.sampled_from([0, 1, 16, 17, 60]),
    shape=st.sampled_from([(), (1,), (5,), (256,), (260,), (3, 4)]),
    dtype=dtypes,
    strided=st.integers(0, 2),
)
def test_values(seed, sources, outputs, count, shape, dtype, strided):
    values = normal(seed, sources, *shape, dtype=dtype, strided=strided if shape else 0)
    output, source, weight = entries(seed + 1, count, sources, outputs)
    got = weighted_merge(values, output, source, weight, outputs)
    want = weighted_merge_torch(values.double(), output, source, weight.double(), outputs)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=EPS[dtype], atol=10 * EPS[dtype])


def test_whole_numbers_become_float32_and_nothing_is_zero():
    got = weighted_merge(
        tensor([[3, 1], [2, 2]]), tensor([2]), tensor([1]), tensor([0.5]), num_outputs=4
    )
    assert got.dtype == torch.float32 and got.tolist() == [[0, 0], [0, 0], [1, 1], [0, 0]]


def test_operator_and_gradients():
    output, source, weight = entries(3, 20, 6, 4)
    values = normal(0, 6, 5).requires_grad_()
    weight.requires_grad_()
    torch.library.opcheck(torch.ops.vtc.weighted_merge, (values, output, source, weight, 4))
    factor = normal(2, 4, 5)
    (weighted_merge(values, output, source, weight, 4) * factor).sum().backward()
    twin = [x.detach().double().requires_grad_() for x in (values, weight)]
    (weighted_merge_torch(twin[0], output, source, twin[1], 4) * factor).sum().backward()
    for mine, other in zip((values, weight), twin, strict=True):
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-5, atol=1e-6)
    compiled = torch.compile(weighted_merge, fullgraph=True, backend="aot_eager")
    eager = weighted_merge(values, output, source, weight, 4)
    assert torch.equal(compiled(values, output, source, weight, 4), eager)
