"""Images and clips as tiles: their geometry, and where they stand among the tiles of a call."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.packing import Packed, Packing


@dataclass(frozen=True)
class Unit(Packed):
    """One image or clip of a call: its tiles in the order of the vision batch, and how they are packed.

    Attributes:
        packing: how its tokens behind the projector become a sequence.
        fused: what the projector returns is not, tile after tile, what is packed, because the model
            fuses or reorders tokens in or behind it; methods then work on the packed tokens.
    """

    packing: Packing
    fused: bool = False

    @property
    def tiles(self) -> int:
        """How many tiles (crops and thumbnail, or frames) the tower saw of it."""
        return self.packing.tiles

    @property
    def patches(self) -> int:
        """Tokens of a tile."""
        return self.patch_grid[0] * self.patch_grid[1]

    @property
    def separated(self) -> bool:
        """Whether separators stand between its tokens."""
        return self.packing.newline or self.packing.lead or self.packing.tail

    def unpack(self, packed: Tensor) -> Tensor:
        """The packed sequence `[L, D]` as tiles `[T, N, D]`, 0 for patches that have no token."""
        layout = self.layout
        if self.packing.order != "thumbnail_last" and len(layout) == self.tiles * self.patches:
            return packed.unflatten(0, (self.tiles, self.patches))
        kept, tile, patch = (
            x.to(packed.device) for x in (layout.is_patch, layout.tile, layout.patch)
        )
        tiles = packed.new_zeros(self.tiles, self.patches, packed.shape[-1])
        return tiles.index_put((tile[kept], patch[kept]), packed[kept])


#: a packing that cuts no padding away
uncut = functools.partial(Packing, unpad="none")


@dataclass(frozen=True)
class Place:
    """Where the tiles of a unit stand among all tiles of a call, in the tower's order."""

    unit: Unit
    tile: int
    row: int

    def patches_of(self, values: Tensor) -> Tensor:
        """This unit's `[T, N, ...]` of values for every token `[S, ...]`, thumbnail first."""
        size = (self.unit.tiles, self.unit.patches)
        return self._order(values[self.row : self.row + size[0] * size[1]].unflatten(0, size))

    def tiles_of(self, values: Tensor) -> Tensor:
        """This unit's `[T, ...]` of values for every tile, thumbnail first."""
        return self._order(values[self.tile : self.tile + self.unit.tiles])

    def _order(self, values: Tensor) -> Tensor:
        packing = self.unit.packing
        if packing.order != "thumbnail_last" or packing.tile_grid is None:
            return values
        return torch.cat([values[-1:], values[:-1]])


def places(units: Sequence[Unit]) -> Iterator[Place]:
    """The place of each unit."""
    tile = row = 0
    for unit in units:
        yield Place(unit, tile, row)
        tile, row = tile + unit.tiles, row + unit.tiles * unit.patches


def square(patches: int) -> tuple[int, int]:
    """`(rows, cols)` of a square tile with `patches` patches."""
    side = math.isqrt(patches)
    if side * side != patches:
        raise VTCError(f"pixel_values: a tile gives {patches} patches, not a square grid")
    return side, side


def on_grid(values: Tensor, side: int, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """Values of square tiles `[T * side**2, ...]`, row by row, through `pool` (`[T, C, h, w]`)."""
    inner = values.shape[1:]
    grid = values.reshape(-1, side, side, inner.numel()).permute(0, 3, 1, 2).float()
    return pool(grid).permute(0, 2, 3, 1).reshape(-1, *inner).to(values.dtype)


def grouped(values: Tensor, side: int, factor: int) -> Tensor:
    """Means over squares of `factor` x `factor` patches, row by row: what a pixel shuffle fuses."""
    return on_grid(values, side, lambda x: nn.functional.avg_pool2d(x, factor))
