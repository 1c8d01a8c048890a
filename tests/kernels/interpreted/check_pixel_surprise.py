"""Predicting pixels: kernel against twin, number for number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.data import DEVICE, dtypes, mask, seeds, tensor
from vtc.kernels.pixel_surprise import pixel_surprise, pixel_surprise_torch


def picture(
    seed: int, *shape: int, levels: int, dtype: torch.dtype, strided: bool = False
) -> torch.Tensor:
    """Pixels from 0 to 1 of so many levels; few make tokens that are alike."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, levels, shape, generator=generator) / max(levels - 1, 1)
    pixels = pixels.to(DEVICE, dtype)
    return pixels.mT.contiguous().mT if strided else pixels


@given(
    seed=seeds,
    tiles=st.integers(1, 3),
    rows=st.sampled_from([1, 2, 5, 9]),
    cols=st.sampled_from([1, 3, 4, 8]),
    values=st.sampled_from([1, 2, 12, 70]),
    levels=st.sampled_from([1, 2, 12]),
    tau=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    dtype=dtypes,
    strided=st.booleans(),
    share=st.sampled_from([0.0, 0.7, 1.0]),
)
def test_surprise(seed, tiles, rows, cols, values, levels, tau, dtype, strided, share):
    shape = tiles, rows * cols, values
    pixels = picture(seed, *shape, levels=levels, dtype=dtype, strided=strided)
    valid = mask(seed, tiles, rows * cols, share=share)
    got = pixel_surprise(pixels, valid, (rows, cols), tau)
    want = pixel_surprise_torch(pixels, valid, (rows, cols), tau)
    assert got.dtype == torch.float32 and torch.equal(got, want)


@pytest.mark.parametrize("rows,cols", [(40, 3), (3, 40), (36, 36)])
@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_diagonals_longer_than_a_block(rows, cols, tau):
    pixels = picture(0, 1, rows * cols, 2, levels=4, dtype=torch.float32)
    valid = mask(1, 1, rows * cols, share=0.9)
    arguments = pixels, valid, (rows, cols), tau
    assert torch.equal(pixel_surprise(*arguments), pixel_surprise_torch(*arguments))


def test_errors_do_not_add_up():
    """Each token is 0.1 off the one before: with rebuilt neighbours every third is a surprise."""
    pixels, valid = torch.arange(7, device=DEVICE).view(1, 7, 1) / 10, tensor([[True] * 7])
    off = pixel_surprise(pixels, valid, (1, 7), 0.25)[0]
    torch.testing.assert_close(off[1:], tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]))
    assert off[0] == torch.inf
    torch.testing.assert_close(pixel_surprise(pixels, valid, (1, 7))[0, 1:], tensor([0.1] * 6))


def test_no_tiles_and_no_patches():
    for tiles, rows in ((0, 2), (2, 0)):
        pixels = torch.zeros(tiles, rows * 3, 4, device=DEVICE)
        valid = torch.ones(tiles, rows * 3, dtype=torch.bool, device=DEVICE)
        for tau in (0.0, 0.1):
            assert pixel_surprise(pixels, valid, (rows, 3), tau).shape == (tiles, rows * 3)


@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_operator(tau):
    pixels = picture(0, 2, 12, 5, levels=3, dtype=torch.float32)
    valid = mask(0, 2, 12)
    torch.library.opcheck(torch.ops.vtc.pixel_surprise, (pixels, valid, 3, 4, tau))
    if tau > 0:
        torch.library.opcheck(torch.ops.vtc.pixel_surprise_torch, (pixels, valid, 3, 4, tau))
    compiled = torch.compile(pixel_surprise, fullgraph=True, backend="aot_eager")
    arguments = pixels, valid, (3, 4), tau
    assert torch.equal(compiled(*arguments), pixel_surprise_torch(*arguments))
