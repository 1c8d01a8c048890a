"""Index tables of an image's geometry, worked out once for every geometry.

They live on the CPU and are shared by all images alike, so they must not be changed in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from vtc.functional.anyres import Layout, pack_layout, valid_region


@dataclass(frozen=True, eq=False)
class Geometry:
    """What depends on an image's shape alone; T tiles, N patches a tile, L packed tokens.

    Attributes:
        layout: provenance of the packed sequence.
        patch_grid: `(rows, cols)` of a tile's patches.
        tile_grid: `(rows, cols)` of the crops, None for a single tile or a clip.
        tiles: T.
        region: `(top, bottom, left, right)` of the crops' canvas that is not padding.
        valid: bool `[T, N]`, the patches that survive un-padding.
        packed: int64 `[T, N]`, where each patch stands in the packed sequence, -1 for padding.
        source: int64 `[L]`, `tile * N + patch` of each packed token, -1 for a separator.
        available: valid patches of each tile.
    """

    layout: Layout
    patch_grid: tuple[int, int]
    tile_grid: tuple[int, int] | None
    tiles: int
    region: tuple[int, int, int, int]
    valid: Tensor
    packed: Tensor
    source: Tensor
    available: tuple[int, ...]

    @cached_property
    def patches(self) -> int:
        """Patch tokens of the image, un-padded."""
        return sum(self.available)

    @cached_property
    def length(self) -> int:
        """L."""
        return len(self.source)

    @cached_property
    def separators(self) -> Tensor:
        """Int64: packed indices of the separators."""
        with tables():
            return (self.source < 0).nonzero().squeeze(1)


def without_tokens(layout: Layout, hidden: tuple[int, ...]) -> Layout:
    """A packed sequence without the tokens `hidden`."""
    seen = torch.ones(len(layout), dtype=torch.bool)
    seen[list(hidden)] = False
    return Layout(layout.tile[seen], layout.patch[seen], layout.row[seen])


@lru_cache(maxsize=64)
def without(shape: Geometry, hidden: tuple[int, ...]) -> Geometry:
    """The same image without some of its packed tokens, as if they were padding.

    Args:
        hidden: their indices in the packed sequence, ascending.
    """
    with tables():
        seen = torch.ones(len(shape.layout), dtype=torch.bool)
        seen[list(hidden)] = False
        layout = without_tokens(shape.layout, hidden)
        place = torch.where(seen, seen.cumsum(0) - 1, -1)
        packed = torch.where(shape.packed >= 0, place[shape.packed.clamp(min=0)], -1)
        valid = packed >= 0
        return replace(
            shape,
            layout=layout,
            valid=valid,
            packed=packed,
            source=shape.source[seen],
            available=tuple(valid.sum(1).tolist()),
        )


@contextmanager
def tables() -> Iterator[None]:
    """Inside, tensors are ordinary ones on the CPU: fit to be kept and used by any later call."""
    with torch.inference_mode(False), torch.device("cpu"):
        yield


@lru_cache(maxsize=512)
def geometry(
    patch_grid: tuple[int, int],
    tile_grid: tuple[int, int] | None = None,
    image_size: tuple[int, int] | None = None,
    newline: bool = False,
    unpad: str = "hf",
    frames: int = 1,
    order: str = "canvas",
    shrink: int | None = None,
    lead: bool = False,
    tail: bool = False,
) -> Geometry:
    """The tables of an image or clip; the arguments are those of `anyres.pack_layout`."""
    tiles = frames if tile_grid is None else 1 + tile_grid[0] * tile_grid[1]
    patches = patch_grid[0] * patch_grid[1]
    crops = tile_grid or (1, 1)
    canvas = crops[0] * patch_grid[0], crops[1] * patch_grid[1]
    with tables():
        layout = pack_layout(
            patch_grid,
            tile_grid,
            image_size,
            newline,
            unpad,
            frames=frames,
            order=order,
            shrink=shrink,
            lead=lead,
            tail=tail,
        )
        source = torch.where(layout.is_patch, layout.tile * patches + layout.patch, -1)
        here = layout.is_patch.nonzero().squeeze(1)
        packed = torch.full((tiles * patches,), -1)
        packed[source[here]] = here
        packed = packed.view(tiles, patches)
        valid = packed >= 0
        return Geometry(
            layout=layout,
            patch_grid=patch_grid,
            tile_grid=tile_grid,
            tiles=tiles,
            region=valid_region(image_size or canvas, canvas, unpad),
            valid=valid,
            packed=packed,
            source=source,
            available=tuple(valid.sum(1).tolist()),
        )
