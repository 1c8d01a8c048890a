"""PixelPrune against a loop over tokens in raster order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.methods import plain
from tests.methods.images import image, images
from vtc import VisualTokens, VTCError
from vtc.kernels.pixel_surprise import pixel_surprise
from vtc.methods.pixelprune import PixelPrune


def expected(pixels: torch.Tensor, valid: torch.Tensor, cols: int, tau: float) -> list[float]:
    """How far each token of a tile is from its prediction."""
    rebuilt, out = pixels.double().clone(), []

    def alike(a: int, b: int) -> bool:
        return float((rebuilt[a] - rebuilt[b]).abs().max()) <= tau

    for place in range(len(pixels)):
        left = place - 1 if place % cols and valid[place - 1] else None
        above = place - cols if place >= cols and valid[place - cols] else None
        by = above if left is None else left
        if left is not None and above is not None and valid[above - 1]:
            if alike(above - 1, left) and not alike(above - 1, above):
                by = above
        if by is None or not valid[place]:
            out.append(float("inf"))
            continue
        out.append(float((rebuilt[place] - rebuilt[by]).abs().max()))
        if tau and out[-1] <= tau:
            rebuilt[place] = rebuilt[by]
    return out


@given(tokens=images(), tau=st.sampled_from([0.0, 0.05, 0.4]), coarse=st.booleans())
def test_what_is_predicted_goes(tokens: VisualTokens, tau: float, coarse: bool) -> None:
    noise = torch.rand(tokens.signals["pixels"].shape, generator=torch.Generator().manual_seed(1))
    pixels = tokens.signals["pixels"] if coarse else noise * 0.5
    tokens = replace(tokens, signals={"pixels": pixels})
    cols, far = tokens.patch_grid[1], pixel_surprise(pixels, tokens.valid, tokens.patch_grid, tau)
    want = set()
    for tile, (values, valid) in enumerate(zip(pixels, tokens.valid, strict=True)):
        off = expected(values, valid, cols, tau)
        assert far[tile, valid].tolist() == pytest.approx(torch.tensor(off)[valid].tolist())
        want |= {(tile, i) for i, o in enumerate(off) if valid[i] and o > tau}
    assert plain.kept(PixelPrune(tau=tau).compress(tokens)) == want


def test_a_budget_takes_the_farthest_from_their_prediction() -> None:
    tokens = image(crops=(2, 2), size=(500, 300))
    far = pixel_surprise(tokens.signals["pixels"], tokens.valid, tokens.patch_grid)
    row = far.masked_fill(~tokens.valid, -1).flatten().tolist()
    want = sorted(range(len(row)), key=lambda i: (-row[i], i))[:50]
    out = PixelPrune(tokens=50).compress(tokens)
    assert plain.kept(out) == {(i // 64, i % 64) for i in want}


def test_a_blank_page_is_one_token_a_tile() -> None:
    tokens = image(crops=(2, 2), size=(500, 500))
    blank = torch.ones_like(tokens.signals["pixels"])
    out = PixelPrune().compress(replace(tokens, signals={"pixels": blank}))
    assert out.tile[out.is_patch].sort().values.tolist() == [0, 1, 2, 3, 4]
    assert PixelPrune().counts_itself and not PixelPrune(0.5).counts_itself


def test_what_is_refused() -> None:
    with pytest.raises(VTCError, match="tau: got -0.1, allowed are numbers from 0 to 1"):
        PixelPrune(tau=-0.1)
