"""Rounds that drop the likest: kernel against twin, number for number."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.data import dtypes, normal, seeds, tensor
from vtc.kernels._ordering import LONGEST
from vtc.kernels.drop_alike import drop_alike, drop_alike_torch, rounds


def lists(seed: int, tiles: int, patches: int, longest: int) -> torch.Tensor:
    """Some patches of each tile in an order of their own."""
    return normal(seed, tiles, patches).argsort(1)[:, :longest]


@given(
    seed=seeds,
    sizes=st.lists(st.integers(0, 70), min_size=1, max_size=3),
    share=st.floats(0, 1),
    step=st.sampled_from([1, 3, 8, 100]),
    dtype=dtypes,
    strided=st.integers(0, 2),
    levels=st.sampled_from([0, 1, 10**6]),  # 0: all are alike
)
def test_rounds(seed, sizes, share, step, dtype, strided, levels):
    patches, longest = max(sizes) + 2, max(*sizes, 1)
    similarity = normal(seed, len(sizes), patches, patches, dtype=dtype, strided=strided)
    similarity = (similarity * levels).round()
    left = lists(seed, len(sizes), patches, longest)
    wanted = [min(max(int(share * size), 1), size) for size in sizes]
    arguments = left, tensor(sizes), tensor(wanted), rounds(sizes, wanted, step), step
    got, want = drop_alike(similarity, *arguments), drop_alike_torch(similarity, *arguments)
    assert got.dtype == torch.int64 and torch.equal(got, want)
    assert (got >= 0).sum(1).tolist() == wanted


def test_by_hand():
    """Of a, b, c, d, e the places 0, 2, 4 are compared with b and d; c is likest, then e."""
    similarity = torch.zeros(5, 5, device=tensor(0).device)
    for pair, value in (((0, 1), 0.1), ((2, 3), 0.9), ((4, 1), 0.5), ((0, 4), 1.0)):
        similarity[pair] = similarity[pair[::-1]] = value
    left, size = torch.arange(5, device=similarity.device)[None], tensor([5])
    for goal, kept in ((4, [4, 0, 1, 3]), (3, [0, 1, 3])):
        most = rounds([5], [goal], 2)
        got = drop_alike(similarity[None], left, size, tensor([goal]), most, 2)
        assert got.tolist() == [[*kept, *[-1] * (5 - goal)]]


def test_no_tiles_no_patches_and_lists_that_are_too_long():
    for tiles, longest in ((0, 3), (2, 0), (1, LONGEST + 1)):
        patches = min(longest, 5)
        similarity = normal(0, tiles, patches, patches)
        left = torch.zeros(tiles, longest, dtype=torch.int64, device=similarity.device)
        size = torch.full((tiles,), longest, device=similarity.device)
        got = drop_alike(similarity, left, size, size, [], 8)
        assert torch.equal(got, left)


def test_operator():
    similarity, left = normal(0, 2, 12, 12), lists(1, 2, 12, 12)
    size, wanted = [12, 9], [4, 4]
    arguments = similarity, left, tensor(size), tensor(wanted), rounds(size, wanted, 4), 4
    torch.library.opcheck(torch.ops.vtc.drop_alike, arguments)
    torch.library.opcheck(torch.ops.vtc.drop_alike_torch, arguments)
    compiled = torch.compile(drop_alike, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), drop_alike_torch(*arguments))


def test_rounds_with_tritons_sort():
    similarity, left = normal(0, 1, 16, 16), lists(1, 1, 16, 16)
    arguments = similarity, left, tensor([16]), tensor([5]), rounds([16], [5], 6), 6
    assert torch.equal(drop_alike(*arguments), drop_alike_torch(*arguments))
