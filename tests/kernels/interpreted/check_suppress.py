"""Suppression: kernel against the greedy pass that it stands for, and against the twin."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.data import mask, normal, seeds, zeros
from vtc.kernels._ordering import LONGEST
from vtc.kernels.suppress import suppress, suppress_torch


def ahead(seed: int, tiles: int, size: int, share: float) -> torch.Tensor:
    """Who is suppressed by whom: by patches that come before in an order of the tile."""
    rank = normal(seed, tiles, size).argsort(1)
    return mask(seed, tiles, size, size, share=share) & (rank[:, None] < rank[:, :, None])


def one_by_one(by: torch.Tensor, valid: torch.Tensor) -> list[bool]:
    """A tile's patches in an order in which those that may suppress come first."""
    kept: dict[int, bool] = {}
    while len(kept) < len(by):
        for i in range(len(by)):
            those = by[i].nonzero().squeeze(1).tolist()
            if i not in kept and all(j in kept for j in those):
                kept[i] = bool(valid[i]) and not any(kept[j] for j in those)
    return [kept[i] for i in range(len(by))]


@given(
    seed=seeds,
    tiles=st.integers(1, 3),
    size=st.sampled_from([1, 2, 3, 17, 64, 70]),
    share=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    real=st.sampled_from([0.0, 0.6, 1.0]),
)
def test_what_is_left(seed, tiles, size, share, real):
    by, valid = ahead(seed, tiles, size, share), mask(seed + 1, tiles, size, share=real)
    got = suppress(by, valid)
    assert got.dtype == torch.bool and torch.equal(got, suppress_torch(by, valid))
    assert got.tolist() == [one_by_one(*tile) for tile in zip(by, valid, strict=True)]


def test_a_chain_takes_as_many_steps_as_it_is_long():
    by = torch.ones(40, 40, dtype=torch.bool, device=zeros(1).device).tril(-1).triu(-1)[None]
    kept = suppress(by, torch.ones_like(by[0, :1]))
    assert kept.tolist() == [[True, False] * 20]


def test_slices_and_transposed_tensors():
    by, valid = ahead(3, 2, 24, 0.3), mask(4, 24, 2)
    want = suppress_torch(by, valid.t())
    assert torch.equal(suppress(by.mT.contiguous().mT, valid.t()), want)


def test_no_tiles_no_patches_and_tiles_that_are_too_large():
    for tiles, size in ((0, 3), (2, 0), (1, LONGEST + 1)):
        by, valid = (
            zeros(shape, dtype=torch.bool) for shape in ((tiles, size, size), (tiles, size))
        )
        assert torch.equal(suppress(by, ~valid), ~valid)


def test_operator():
    arguments = ahead(0, 2, 12, 0.4), mask(0, 2, 12)
    torch.library.opcheck(torch.ops.vtc.suppress, arguments)
    torch.library.opcheck(torch.ops.vtc.suppress_torch, arguments)
    compiled = torch.compile(suppress, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), suppress_torch(*arguments))
