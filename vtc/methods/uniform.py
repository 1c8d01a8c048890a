"""Uniform: every so many patches, wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vtc.functional.budget import apportion
from vtc.functional.grids import even_grid, valid_lines
from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.tokens import CompressedTokens, VisualTokens, keep_patches


@register_method
@dataclass
class Uniform(Method):
    """Keeps an even spatial grid of patches in every tile; the budget exactly.

    Tiles share the budget by their patches that are not padding (largest remainders). Of each tile
    the middle patch of every bin of an even grid stays, see `functional.grids.even_grid`.
    """

    name: ClassVar[str] = "uniform"

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        available = tokens.valid.sum(1).tolist()
        shares = apportion(available, available, self.budget(tokens))
        keep = torch.zeros_like(tokens.valid)
        cols = tokens.patch_grid[1]
        lines = valid_lines(tokens.valid, tokens.patch_grid)
        for tile, (share, (y, x)) in enumerate(zip(shares, lines, strict=True)):
            if share:
                centre = even_grid(len(y), len(x), share)[1]
                keep[tile, y[centre // len(x)] * cols + x[centre % len(x)]] = True
        return keep_patches(tokens, keep)
