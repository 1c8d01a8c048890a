"""Even grids of bins, pooled axes, rectangles of valid patches."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vtc import VTCError
from vtc.functional.anyres import pack_layout, valid_region
from vtc.functional.grids import even_grid, pooled_axis, valid_rectangles
from vtc.kernels.adaptive_pool import pool_bounds


@given(st.data(), st.integers(1, 30), st.integers(1, 30))
def test_even_grid_has_exactly_the_bins_asked_for_each_with_its_centre(data, height, width):
    count = data.draw(st.integers(1, height * width))
    bins, centre = even_grid(height, width, count)
    sizes = torch.bincount(bins.flatten(), minlength=count)
    assert len(sizes) == count and bool((sizes > 0).all())
    assert torch.equal(bins.flatten()[centre], torch.arange(count))  # so centres are distinct too


@pytest.mark.parametrize("count,side", [(144, 12), (64, 8), (36, 6), (576, 24)])
def test_even_grid_is_the_plain_one_where_there_is_one(count, side):
    bins, _ = even_grid(24, 24, count)
    row = torch.arange(24) * side // 24
    assert torch.equal(bins, row[:, None] * side + row)


def test_even_grid_follows_the_shape_of_the_rectangle():
    bins, _ = even_grid(6, 24, 16)
    assert len(bins[:, 0].unique()) == 2 and len(bins[0].unique()) == 8


def test_even_grid_refuses_counts_that_do_not_fit():
    with pytest.raises(VTCError, match="count: got 7, allowed are 1 to 6"):
        even_grid(2, 3, 7)


@given(st.data(), st.integers(1, 30))
def test_pooled_axis_keeps_bins_that_show_something_once(data, extent):
    bins = data.draw(st.integers(1, extent))
    low = data.draw(st.integers(0, extent - 1))
    high = data.draw(st.integers(low + 1, extent))
    used, centre = pooled_axis(extent, bins, low, high)
    assert len(used) > 0 and bool((centre.diff() > 0).all())
    assert int(centre.min()) >= low and int(centre.max()) < high
    first, last = pool_bounds(extent, bins)
    assert bool(((first[used] <= centre) & (centre < last[used])).all())


@given(st.integers(1, 40), st.data())
def test_pooled_axis_without_padding_uses_every_bin(extent, data):
    bins = data.draw(st.integers(1, extent))
    assert pooled_axis(extent, bins, 0, extent)[0].tolist() == list(range(bins))


def test_pooled_axis_of_nothing_but_padding_is_empty():
    assert len(pooled_axis(24, 8, 0, 0)[0]) == 0


def test_valid_rectangles_are_the_tiles_cut_with_the_region():
    grid, crops, size = (6, 6), (2, 2), (300, 1000)
    layout = pack_layout(grid, crops, size)
    valid = torch.zeros(5, 36, dtype=torch.bool)
    valid[layout.tile, layout.patch] = True
    top, bottom, left, right = valid_region(size, (12, 12))
    assert valid_rectangles(valid, grid) == [
        (0, 6, 0, 6),
        (top, 6, left, 6),
        (top, 6, 0, right - 6),
        (0, bottom - 6, left, 6),
        (0, bottom - 6, 0, right - 6),
    ]
    valid[3] = False
    assert valid_rectangles(valid, grid)[3] == (0, 0, 0, 0)


@pytest.mark.parametrize("newline", [False, True])
@pytest.mark.parametrize("size", [(3000, 10), (10, 3000)])
def test_layout_survives_images_that_un_padding_leaves_nothing_of(size, newline):
    layout = pack_layout((4, 4), (2, 2), size, newline=newline)
    assert len(layout.tile) == len(layout.patch) == len(layout.row)
    assert math.prod(layout.tile[layout.is_patch].shape) >= 16
