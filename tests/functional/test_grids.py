"""Even grids of bins, pooled axes, rectangles of valid patches."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vtc.functional.anyres import valid_region
from vtc.functional.grids import even_bins, pooled_axis, valid_rectangles
from vtc.kernels.adaptive_pool import pool_bounds
from vtc.packing import Packing


def crossings(rows: list[bool], cols: list[bool]) -> torch.Tensor:
    """One tile whose valid patches are the crossings of some rows and columns."""
    return (torch.tensor(rows)[:, None] & torch.tensor(cols)).flatten()[None]


def bins_of(height: int, width: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bins `[height, width]` of a tile without padding, and centres."""
    valid = torch.ones(1, height * width, dtype=torch.bool)
    bins, centre = even_bins(valid, (height, width), torch.tensor([count]))
    return bins.view(height, width), centre[0]


@given(st.data(), st.integers(1, 20), st.integers(1, 20))
def test_even_bins_are_exactly_those_asked_for_each_with_its_centre(data, height, width):
    lines = [data.draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in (height, width)]
    valid = crossings(*lines)
    count = data.draw(st.integers(0, int(valid.sum())))
    bins, centre = even_bins(valid, (height, width), torch.tensor([count]))
    assert bool((centre <= valid).all()) and int(centre.sum()) == count
    if count:
        sizes = torch.bincount(bins[valid], minlength=count)
        assert len(sizes) == count and bool((sizes > 0).all())
        assert torch.equal(bins[centre].sort().values, torch.arange(count))


def test_even_bins_of_a_tile_do_not_depend_on_the_others():
    valid = torch.cat([crossings([1, 1, 0, 1], [1, 0, 1, 1]), crossings([1] * 4, [1] * 4)]).bool()
    both = even_bins(valid, (4, 4), torch.tensor([5, 7]))
    for i, count in enumerate((5, 7)):
        alone = even_bins(valid[i : i + 1], (4, 4), torch.tensor([count]))
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(both, alone, strict=True))


@pytest.mark.parametrize("count,side", [(144, 12), (64, 8), (36, 6), (576, 24)])
def test_even_bins_are_a_plain_grid_where_there_is_one(count, side):
    row = torch.arange(24) * side // 24
    assert torch.equal(bins_of(24, 24, count)[0], row[:, None] * side + row)


def test_even_bins_follow_the_shape_of_the_rectangle():
    bins, _ = bins_of(6, 24, 16)
    assert len(bins[:, 0].unique()) == 2 and len(bins[0].unique()) == 8


def axis(extent: int, bins: int, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The bins of one axis that hold something, and the line in the middle of each."""
    numbers = (torch.tensor([n]) for n in (bins, low, high))
    count, low, high = numbers
    used, first, last = (x[0] for x in pooled_axis(extent, count, bins, low, high))
    return used.nonzero().squeeze(1), ((first + last - 1) // 2)[used]


@given(st.data(), st.integers(1, 30))
def test_pooled_axis_keeps_bins_that_show_something_once(data, extent):
    bins = data.draw(st.integers(1, extent))
    low = data.draw(st.integers(0, extent - 1))
    high = data.draw(st.integers(low + 1, extent))
    used, centre = axis(extent, bins, low, high)
    assert len(used) > 0 and bool((centre.diff() > 0).all())
    assert int(centre.min()) >= low and int(centre.max()) < high
    first, last = pool_bounds(extent, bins)
    assert bool(((first[used] <= centre) & (centre < last[used])).all())


@given(st.integers(1, 40), st.data())
def test_pooled_axis_without_padding_uses_every_bin(extent, data):
    bins = data.draw(st.integers(1, extent))
    assert axis(extent, bins, 0, extent)[0].tolist() == list(range(bins))


def test_pooled_axis_of_nothing_but_padding_is_empty():
    assert len(axis(24, 8, 0, 0)[0]) == 0


def test_valid_rectangles_are_the_tiles_cut_with_the_region():
    grid, crops, size = (6, 6), (2, 2), (300, 1000)
    layout = Packing(grid, crops, size).layout
    valid = torch.zeros(5, 36, dtype=torch.bool)
    valid[layout.tile, layout.patch] = True
    top, bottom, left, right = valid_region(size, (12, 12))
    assert valid_rectangles(valid, grid).tolist() == [
        [0, 6, 0, 6],
        [top, 6, left, 6],
        [top, 6, 0, right - 6],
        [0, bottom - 6, left, 6],
        [0, bottom - 6, 0, right - 6],
    ]
    valid[3] = False
    assert valid_rectangles(valid, grid)[3].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("newline", [False, True])
@pytest.mark.parametrize("size", [(3000, 10), (10, 3000)])
def test_layout_survives_images_that_un_padding_leaves_nothing_of(size, newline):
    layout = Packing((4, 4), (2, 2), size, newline=newline).layout
    assert len(layout.tile) == len(layout.patch) == len(layout.row)
    assert math.prod(layout.tile[layout.is_patch].shape) >= 16
