"""Top-k cosine matching: kernel against twin in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from tests.kernels.interpreted.data import dtypes, mask, normal, ones, seeds, tensor, whole, zeros
from vtc.kernels.cosine_topk import MOST, cosine_topk, cosine_topk_torch


@given(
    seed=seeds,
    tiles=st.integers(1, 2),
    count=st.sampled_from([1, 5, 20]),
    patches=st.sampled_from([1, 31, 32, 33, 100]),
    width=st.sampled_from([1, 6, 70]),
    k=st.sampled_from([1, 3, 32, 40]),
    dtype=dtypes,
    strided=st.integers(0, 2),
    share=st.sampled_from([None, 0.0, 0.05, 0.7]),
    biased=st.booleans(),
    excluding=st.booleans(),
)
def test_choices(seed, tiles, count, patches, width, k, dtype, strided, share, biased, excluding):
    keys = normal(seed, tiles, patches, width, dtype=dtype, strided=strided)
    queries = normal(seed + 1, tiles, count, width, dtype=dtype)
    bias = normal(seed + 2, patches, tiles).t() if biased else None
    valid = None if share is None else mask(seed, tiles, patches, share=share)
    itself = whole(seed, patches, tiles, count) if excluding else None
    got = cosine_topk(queries, keys, k, bias, valid, itself)
    wide = None if bias is None else bias.double()
    want = cosine_topk_torch(queries.double(), keys.double(), k, wide, valid, itself)
    assert got.dtype == torch.int64 and got.shape == (tiles, count, k)
    assert torch.equal(got < 0, want < 0)
    score = normalize(queries.double(), dim=-1) @ normalize(keys.double(), dim=-1).transpose(1, 2)
    score = score if wide is None else score + wide[:, None]
    # the twin's choice, up to scores that are equal within rounding, and nobody twice
    mine, twin = (score.gather(2, x.clamp(min=0)).masked_fill(x < 0, 0) for x in (got, want))
    torch.testing.assert_close(mine, twin, rtol=0, atol=1e-5)
    for row in got.flatten(0, 1):
        chosen = row[row >= 0]
        assert len(chosen.unique()) == len(chosen)
    if valid is not None:
        spread = valid[:, None].expand_as(score).gather(2, got.clamp(min=0))
        assert bool((spread | (got < 0)).all())
    if itself is not None:
        assert bool((got != itself[..., None]).all())


def test_ties_go_to_the_lower_index():
    keys, queries = ones(1, 70, 4), ones(1, 2, 4)
    got = cosine_topk(queries, keys, 5, itself=tensor([[1, 60]]))
    assert got.tolist() == [[[0, 2, 3, 4, 5], [0, 1, 2, 3, 4]]]


def test_more_neighbours_than_fit_and_no_queries():
    keys = normal(0, 1, MOST + 40, 3)
    found = cosine_topk(keys[:, :1], keys, MOST + 1)
    assert torch.equal(found, cosine_topk_torch(keys[:, :1], keys, MOST + 1))
    assert cosine_topk(keys[:, :0], keys, 4).shape == (1, 0, 4)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_stands_in_padding_is_not_chosen(odd):
    queries, keys, valid = normal(0, 2, 3, 6), normal(1, 2, 70, 6), mask(2, 2, 70)
    bias = normal(3, 2, 70)
    want = cosine_topk(queries, keys, 40, bias, valid)
    keys[~valid] = odd
    bias[~valid] = odd
    assert torch.equal(cosine_topk(queries, keys, 40, bias, valid), want)


def test_operator():
    keys = normal(0, 2, 9, 5)
    arguments = keys[:, :2], keys, 3, normal(1, 2, 9), mask(0, 2, 9), zeros(2, 2).long()
    torch.library.opcheck(torch.ops.vtc.cosine_topk, arguments)
    compiled = torch.compile(cosine_topk, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), cosine_topk_torch(*arguments))


def test_two_blocks_of_keys_with_tritons_sort():
    queries, keys = normal(0, 1, 2, 4), normal(1, 1, 40, 4)
    got = cosine_topk(queries, keys, 3)
    assert torch.equal(got, cosine_topk_torch(queries.double(), keys.double(), 3))
