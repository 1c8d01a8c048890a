"""The widths that things are measured at, and random tensors of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LAYERS = 32  # of the language model


@dataclass(frozen=True)
class Layout:
    """What the visual tokens of a prompt are.

    Attributes:
        images: how many; a clip is one.
        tiles: of each image: thumbnail and crops, or the frames of a clip.
        crops: rows and columns of crops; None for a single tile and for clips.
    """

    images: int = 1
    tiles: int = 1
    crops: tuple[int, int] | None = None

    def __str__(self) -> str:
        many = "image" if self.images == 1 else f"{self.images} images"
        if self.crops is not None:
            return f"{many} of {self.tiles} tiles"
        return many if self.tiles == 1 else f"clip of {self.tiles} frames"


#: visual tokens of a prompt -> what they can be
LAYOUTS = {
    576: (Layout(),),
    2880: (Layout(tiles=5, crops=(2, 2)),),
    14400: (Layout(images=5, tiles=5, crops=(2, 2)), Layout(tiles=25)),
}


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
