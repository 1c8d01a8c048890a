"""Top-k by segment, neighbour counts, pooling, merging: against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vtc.errors import VTCError
from vtc.kernels import _gram, merge
from vtc.kernels.adaptive_pool import adaptive_pool
from vtc.kernels.merge import weighted_merge
from vtc.kernels.neighbour_count import neighbour_count_torch
from vtc.kernels.segmented_topk import segmented_topk


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 40), st.booleans())
def test_topk_is_a_stable_sort_of_every_row(seed, rows, size, infinite):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (rows, size), generator=generator).float()  # many ties
    if infinite:
        scores[scores == 0] = -torch.inf
    valid = torch.rand(rows, size, generator=generator) < 0.7
    k = torch.randint(0, size + 1, (rows,), generator=generator)
    order, keep = segmented_topk(scores, k, valid)
    for row in range(rows):
        usable = valid[row].nonzero().squeeze(1).tolist()
        expected = sorted(usable, key=lambda i: (-float(scores[row, i]), i))
        assert order[row, : len(usable)].tolist() == expected
        assert keep[row].nonzero().squeeze(1).tolist() == sorted(expected[: int(k[row])])


def test_topk_without_a_mask():
    order, keep = segmented_topk(torch.tensor([[1.0, 3, 3, 2]]), torch.tensor([2]))
    assert order.tolist() == [[1, 2, 3, 0]] and keep.tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("block", [1, 7, 256])
def test_neighbours_are_counted_among_valid_others(block):
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(3, 20, 4, generator=generator)
    valid = torch.rand(3, 20, generator=generator) < 0.8
    got = neighbour_count_torch(keys, 0.3, valid, block)
    for t in range(3):
        for i in range(20):
            near = [
                j
                for j in range(20)
                if j != i
                and valid[t, i]
                and valid[t, j]
                and torch.cosine_similarity(keys[t, i], keys[t, j], dim=0) > 0.3
            ]
            assert int(got[t, i]) == len(near)


@pytest.mark.parametrize("grid,bins", [((24, 24), (8, 8)), ((27, 27), (12, 12)), ((6, 9), (4, 4))])
def test_pooling_is_that_of_pytorch(grid, bins):
    x = torch.randn(3, grid[0] * grid[1], 5, generator=torch.Generator().manual_seed(0))
    got, count = adaptive_pool(x, grid, bins)
    image = x.transpose(1, 2).unflatten(2, grid)
    want = torch.nn.functional.adaptive_avg_pool2d(image, bins).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert bool((count > 0).all())


def test_pooling_leaves_padding_out():
    x = torch.arange(16.0).view(1, 16, 1)
    valid = torch.zeros(1, 16, dtype=torch.bool)
    valid[0, [0, 5, 2]] = True
    got, count = adaptive_pool(x, (4, 4), (2, 2), valid)
    assert got.flatten().tolist() == [2.5, 2.0, 0.0, 0.0] and count.tolist() == [[2, 1, 0, 0]]


def test_pooling_does_not_read_padding():
    x = torch.ones(1, 16, 1)
    x[0, 3:6] = torch.tensor([torch.nan, torch.inf, -torch.inf])[:, None]
    got, _ = adaptive_pool(x, (4, 4), (2, 2), x[..., 0] == 1)
    assert got.flatten().tolist() == [1, 1, 1, 1]


def test_shapes_that_do_not_fit_are_named():
    x, one = torch.ones(1, 6, 1), torch.tensor([0])
    with pytest.raises(VTCError, match=r"patch_grid: got \(2, 2\), but features have 6"):
        adaptive_pool(x, (2, 2), (1, 1))
    with pytest.raises(VTCError, match=r"valid: got shape \(1, 5\), need \(1, 6\)"):
        adaptive_pool(x, (2, 3), (1, 1), torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(VTCError, match=r"got shapes \(1,\), \(1,\) and \(2,\)"):
        weighted_merge(x[0], one, one, torch.ones(2), 1)


def test_pooling_to_the_full_grid_changes_nothing_and_permutes_with_the_batch():
    x = torch.randn(4, 36, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(adaptive_pool(x, (6, 6), (6, 6))[0], x)
    shuffled = torch.tensor([2, 0, 3, 1])
    assert torch.equal(
        adaptive_pool(x[shuffled], (6, 6), (4, 4))[0], adaptive_pool(x, (6, 6), (4, 4))[0][shuffled]
    )


def test_merge_sums_in_float32_and_lets_gradients_through():
    values = torch.full((4096, 2), 1e-3, dtype=torch.float16, requires_grad=True)
    every = torch.arange(4096)
    out = weighted_merge(values, torch.zeros_like(every), every, torch.ones(4096), 2)
    assert out.dtype == torch.float16
    assert abs(out[0, 0].item() - 4096 * values[0, 0].item()) < 2e-3 and out[1, 0].item() == 0
    out.sum().backward()
    assert bool((values.grad == 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_merge_of_many_entries_is_the_same_in_blocks(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    values = (9 * torch.randn(30, 2, 3, generator=generator)).to(dtype)
    output, source = (torch.randint(0, n, (200,), generator=generator) for n in (12, 30))
    weight = torch.rand(200, generator=generator)
    want = weighted_merge(values, output, source, weight, 13)
    monkeypatch.setattr(merge, "BLOCK", 40)
    got = weighted_merge(values, output, source, weight, 13)
    assert got.dtype == want.dtype and torch.equal(got, want)
    arguments = values, output, source, weight, 13
    torch.library.opcheck(torch.ops.vtc.weighted_merge_blocks, arguments)
    numbers = weighted_merge(values[:, 0, 0], output, source, weight, 13)
    assert torch.equal(numbers, want[:, 0, 0])
    weight.requires_grad_()
    weighted_merge(values, output, source, weight, 13).float().sum().backward()
    assert weight.grad is not None  # one product, where somebody learns


def test_products_of_rows_with_each_other(monkeypatch):
    rows = torch.randn(2, 23, 5, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(_gram, "BLOCK", 7)
    got, want = _gram.gram(rows), torch.einsum("bid,bjd->bij", rows.double(), rows.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(got, got.mT)
    torch.library.opcheck(torch.ops.vtc.gram_torch, (rows,))
    rows.requires_grad_()
    _gram.gram(rows).sum().backward()
    torch.testing.assert_close(rows.grad, 2 * rows.detach().sum(1, keepdim=True).expand_as(rows))
