"""Ragged compaction: kernel against twin, number for number."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.data import normal, seeds, tensor, whole
from vtc.kernels.ragged_compact import ragged_compact, ragged_compact_torch

ANY = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)


@given(
    seed=seeds,
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    shape=st.sampled_from([(), (1,), (5,), (600,), (3, 4)]),
    extra=st.integers(0, 3),
    left=st.booleans(),
    fill=st.sampled_from([0, 1, -7]),
    dtype=st.sampled_from(ANY),
    strided=st.integers(0, 2),
)
def test_values(seed, counts, shape, extra, left, fill, dtype, strided):
    values = (normal(seed, 40, *shape, strided=strided if shape else 0) * 9).to(dtype)
    index, splits = whole(seed, 40, sum(counts)), tensor([0, *counts]).cumsum(0)
    arguments = values, index, splits, max(counts) + extra, left, fill
    for mine, twin in zip(
        ragged_compact(*arguments), ragged_compact_torch(*arguments), strict=True
    ):
        assert mine.dtype == twin.dtype and torch.equal(mine, twin)


def test_operator_and_gradient():
    values = normal(0, 6, 3).requires_grad_()
    arguments = values, tensor([1, 1, 5, 0]), tensor([0, 3, 4]), 3, True, 0
    torch.library.opcheck(torch.ops.vtc.ragged_compact, arguments)
    factor = normal(1, 2, 3, 3)
    (ragged_compact(*arguments)[0] * factor).sum().backward()
    twin = values.detach().clone().requires_grad_()
    (ragged_compact_torch(twin, *arguments[1:])[0] * factor).sum().backward()
    assert torch.equal(values.grad, twin.grad) and values.grad[1].abs().sum() > 0
    compiled = torch.compile(ragged_compact, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments)[0], ragged_compact(*arguments)[0])
