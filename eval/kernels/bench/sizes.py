"""The widths that things are measured at, and random tensors of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LAYERS = 32  # of the language model


@dataclass(frozen=True)
class Sizes:
    """What is measured at: a model's widths.

    Attributes:
        side: rows and columns of a tile's patches.
        heads, head_width: of the vision tower.
        width: of the language model.
        inner: of its MLP.
        space: of the shared text-image space.
        tiles: of all images together, for single operations.
    """

    side: int = 24
    heads: int = 16
    head_width: int = 64
    width: int = 4096
    inner: int = 11008
    space: int = 768
    tiles: int = 5

    @property
    def vision(self) -> int:
        """Width of the vision tower."""
        return self.heads * self.head_width


FULL, SMALL = Sizes(), Sizes(side=4, heads=2, head_width=8, width=32, inner=64, space=8)


def normal(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """Normal values, the same for a shape in every run."""
    generator = torch.Generator(device).manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device=device).to(dtype)
