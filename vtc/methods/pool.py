"""Pool: fewer tokens by averaging neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vtc.functional.budget import apportion
from vtc.functional.grids import even_grid, valid_lines
from vtc.methods._merge import assemble
from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.tokens import CompressedTokens, VisualTokens


@register_method
@dataclass
class Pool(Method):
    """Averages the patches of each bin of an even grid; the budget exactly.

    Tiles share the budget as in `uniform`; the bins are disjoint, hold no padding and cover every
    patch once. A token's provenance and position are those of its bin's middle patch, its weight is
    the number of patches in it. Separators stay.
    """

    name: ClassVar[str] = "pool"

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        available = tokens.valid.sum(1).tolist()
        shares = apportion(available, available, self.budget(tokens))
        rows, cols = tokens.patch_grid
        patch_id = torch.arange(rows * cols).view(rows, cols)
        lines = valid_lines(tokens.valid, tokens.patch_grid)
        tile, patch, output, source = [], [], [], []
        done = 0
        for index, (share, (y, x)) in enumerate(zip(shares, lines, strict=True)):
            if not share:
                continue
            bins, centre = even_grid(len(y), len(x), share)
            area = patch_id[y][:, x]
            tile.append(torch.full((share,), index))
            patch.append(area.flatten()[centre])
            output.append(bins.flatten() + done)
            source.append(area.flatten() + index * rows * cols)
            done += share
        out = torch.cat(output)
        size = torch.bincount(out, minlength=done).float()
        return assemble(
            tokens,
            torch.cat(tile),
            torch.cat(patch),
            out,
            torch.cat(source),
            1 / size[out],
            size,
        )
