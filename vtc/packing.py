"""`Packing`: how the tiles of an image or clip become the sequence that a language model reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.functional.anyres import (
    ORDERS,
    UNPAD_RULES,
    canvas_provenance,
    middle_lines,
    shrunk_canvas,
    valid_region,
)

#: fields that are a pair of whole numbers, or None
_PAIRS = ("patch_grid", "tile_grid", "image_size")


@dataclass(frozen=True)
class Packing:
    """How tiles become a sequence: everything about an image's tokens but their values.

    The same packing gives the same index tables; they are worked out once (`geometry`) and shared.

    Attributes:
        patch_grid: `(rows, cols)` of one tile's tokens.
        tile_grid: `(rows, cols)` of the crops, which follow a thumbnail; None for one tile or a clip.
        image_size: original `(height, width)` in pixels; needed where crops are un-padded.
        tiles: T, the frames of a clip; 0 for one tile, or as many as the crops make.
        newline: whether a newline closes every canvas row (and a single tile, and a clip).
        unpad: how padding is cut from the canvas, see `functional.anyres.valid_region`.
        order: `"canvas"` (the thumbnail, then the crops' canvas row by row), `"tiles"` (thumbnail, then
            crop after crop, nothing un-padded) or `"thumbnail_last"` (crop after crop, then it).
        shrink: a canvas of clearly more patches than this many tiles is scaled down to about that many
            (LLaVA-OneVision's `anyres_max`), see `functional.anyres.shrunk_canvas`.
        lead: whether a CLS token stands in front of every tile (as a separator).
        tail: whether a separator stands behind every tile.
        hidden: places in the packed sequence of tokens that the prompt's attention mask hides,
            ascending. They count as padding: they are not chosen, not merged, and no part of what
            `retention` is a share of; `length` and all indices are of the sequence without them.

    Raises:
        VTCError: a field is not allowed, or tiles and crops do not fit.
    """

    patch_grid: tuple[int, int]
    tile_grid: tuple[int, int] | None = None
    image_size: tuple[int, int] | None = None
    tiles: int = 0
    newline: bool = False
    unpad: str = "hf"
    order: str = "canvas"
    shrink: int | None = None
    lead: bool = False
    tail: bool = False
    hidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in _PAIRS:
            value = getattr(self, name)
            if value is not None and type(value) is not tuple:
                object.__setattr__(self, name, tuple(value))
        if self.order not in ORDERS:
            raise VTCError(f"order: got {self.order!r}, allowed are {', '.join(ORDERS)}")
        if self.unpad not in UNPAD_RULES:
            raise VTCError(f"unpad: got {self.unpad!r}, allowed are {', '.join(UNPAD_RULES)}")
        crops = self.tile_grid
        tiles = (self.tiles or 1) if crops is None else 1 + crops[0] * crops[1]
        if self.tiles not in (0, tiles):
            raise VTCError(
                f"tile_grid: got {crops}, which means {tiles} tiles, but features has {self.tiles}"
            )
        object.__setattr__(self, "tiles", tiles)

    # -- index tables ------------------------------------------------------------------------------

    @cached_property
    def geometry(self) -> Geometry:
        """The index tables; shared with all that is packed alike, so never change them."""
        return _geometry(self)

    @property
    def layout(self) -> Layout:
        """Provenance of the packed sequence (on the CPU)."""
        return self.geometry.layout

    @property
    def valid(self) -> Tensor:
        """Bool `[T, N]`, on the CPU: the patches that survive un-padding."""
        return self.geometry.valid

    @property
    def patches(self) -> int:
        """Patch tokens, un-padded, all tiles together: the base of `retention`."""
        return self.geometry.patches

    @property
    def separators(self) -> int:
        """Separators of the packed sequence."""
        return self.geometry.length - self.geometry.patches

    @property
    def length(self) -> int:
        """Tokens of the packed sequence."""
        return self.geometry.length

    @property
    def frames(self) -> int:
        """Frames of a clip; 1 for an image, whatever its tiles."""
        return self.tiles if self.tile_grid is None else 1

    # -- parts of a clip ---------------------------------------------------------------------------

    @property
    def frame_length(self) -> int:
        """Tokens of a frame of a clip, hidden ones counted."""
        return self.patch_grid[0] * self.patch_grid[1] + int(self.lead) + int(self.tail)

    def frame(self, index: int) -> Packing:
        """One frame of a clip as an image of its own, without the separator behind the clip."""
        start, stop = index * self.frame_length, (index + 1) * self.frame_length
        hidden = tuple(place - start for place in self.hidden if start <= place < stop)
        return replace(self, tiles=1, newline=False, hidden=hidden)

    # -- plain values ------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values; tiles as `frames`, which is 1 for an image with crops."""
        out: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            out[field.name] = list(value) if isinstance(value, tuple) else value
        del out["tiles"]
        return {**out, "frames": self.frames}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Packing:
        """The inverse of `to_dict`; what is not named has its default, other entries are ignored.

        Raises:
            KeyError, TypeError, ValueError: the values are not a packing's.
        """
        grid = [None if data[k] is None else tuple(map(int, data[k])) for k in _PAIRS]
        if any(pair is not None and len(pair) != 2 for pair in grid) or grid[0] is None:
            raise TypeError(f"{', '.join(_PAIRS)}: got {grid}")
        rest = ("newline", "unpad", "order", "shrink", "lead", "tail")
        grids: dict[str, Any] = dict(zip(_PAIRS, grid, strict=True))
        return cls(
            **grids,
            tiles=data["frames"] if grid[1] is None else 0,
            **{name: data[name] for name in rest if name in data},
            hidden=tuple(data.get("hidden", ())),
        )


class Packed:
    """What can be read off a `packing`, for whatever has one."""

    packing: Packing

    @property
    def patch_grid(self) -> tuple[int, int]:
        """`(rows, cols)` of one tile's patches."""
        return self.packing.patch_grid

    @property
    def tile_grid(self) -> tuple[int, int] | None:
        """`(rows, cols)` of the crops, None for a single tile or a clip."""
        return self.packing.tile_grid

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Original `(height, width)` in pixels, None when the model does not know it."""
        return self.packing.image_size

    @property
    def hidden(self) -> tuple[int, ...]:
        """Packed tokens that the prompt's attention mask hides; no part of the counts."""
        return self.packing.hidden

    @property
    def frames(self) -> int:
        """Frames of a clip; 1 for an image, whatever its tiles."""
        return self.packing.frames

    @property
    def layout(self) -> Layout:
        """Provenance of the uncompressed packed sequence (on the CPU)."""
        return self.packing.layout


@dataclass(frozen=True)
class Layout:
    """Where each token of an image's packed sequence comes from.

    Attributes:
        tile: int64 `[L]`, source tile, -1 for a separator.
        patch: int64 `[L]`, row-major patch in that tile, -1 for a separator.
        row: int64 `[L]`, canvas row of a crop token or newline, -1 elsewhere.
    """

    tile: Tensor
    patch: Tensor
    row: Tensor

    def __len__(self) -> int:
        return int(self.tile.numel())

    @property
    def is_patch(self) -> Tensor:
        """Bool `[L]`: True for patch tokens, False for separators."""
        return self.patch >= 0


@dataclass(frozen=True, eq=False)
class Geometry:
    """The index tables of a packing; T tiles, N patches a tile, L packed tokens.

    They live on the CPU and are shared by all images packed alike, so they must not be changed in place.
    There is one for equal packings, so that identity tells what is alike.

    Attributes:
        packing: what they are of.
        layout: provenance of the packed sequence.
        valid: bool `[T, N]`, the patches that survive un-padding.
        packed: int64 `[T, N]`, where each patch stands in the packed sequence, -1 for padding.
        source: int64 `[L]`, `tile * N + patch` of each packed token, -1 for a separator.
        available: valid patches of each tile.
    """

    packing: Packing
    layout: Layout
    valid: Tensor
    packed: Tensor
    source: Tensor
    available: tuple[int, ...]

    @property
    def patch_grid(self) -> tuple[int, int]:
        """`(rows, cols)` of a tile's patches."""
        return self.packing.patch_grid

    @property
    def tile_grid(self) -> tuple[int, int] | None:
        """`(rows, cols)` of the crops, None for a single tile or a clip."""
        return self.packing.tile_grid

    @property
    def tiles(self) -> int:
        """T."""
        return self.packing.tiles

    @cached_property
    def region(self) -> tuple[int, int, int, int]:
        """`(top, bottom, left, right)` of the crops' canvas that is not padding."""
        (rows, cols), crops = self.patch_grid, self.tile_grid or (1, 1)
        canvas = crops[0] * rows, crops[1] * cols
        return valid_region(self.packing.image_size or canvas, canvas, self.packing.unpad)

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


@contextmanager
def tables() -> Iterator[None]:
    """Inside, tensors are ordinary ones on the CPU: fit to be kept and used by any later call."""
    with torch.inference_mode(False), torch.device("cpu"):
        yield


@lru_cache(maxsize=512)
def _geometry(packing: Packing) -> Geometry:
    with tables():
        layout = _without(_layout(replace(packing, hidden=())), packing.hidden)
        tiles, patches = packing.tiles, packing.patch_grid[0] * packing.patch_grid[1]
        source = torch.where(layout.is_patch, layout.tile * patches + layout.patch, -1)
        here = layout.is_patch.nonzero().squeeze(1)
        packed = torch.full((tiles * patches,), -1)
        packed[source[here]] = here
        packed = packed.view(tiles, patches)
        valid = packed >= 0
        return Geometry(packing, layout, valid, packed, source, tuple(valid.sum(1).tolist()))


def _without(layout: Layout, hidden: tuple[int, ...]) -> Layout:
    """A packed sequence without the tokens `hidden`."""
    if not hidden:
        return layout
    seen = torch.ones(len(layout), dtype=torch.bool)
    seen[list(hidden)] = False
    return Layout(layout.tile[seen], layout.patch[seen], layout.row[seen])


@lru_cache(maxsize=64)
def _layout(packing: Packing) -> Layout:
    """The packed sequence with all its tokens; called inside `tables`."""
    rows, cols = packing.patch_grid
    crops, around = packing.tile_grid, (int(packing.lead), int(packing.tail))
    if crops is None:
        return _tile_after_tile(range(packing.tiles), rows * cols, around, packing.newline)
    if packing.order != "canvas":
        tiles = range(packing.tiles)
        order = [*tiles] if packing.order == "tiles" else [*tiles[1:], 0]
        return _tile_after_tile(order, rows * cols, around)

    tile, patch = canvas_provenance(packing.patch_grid, crops)
    canvas = crops[0] * rows, crops[1] * cols
    if packing.unpad != "none" and packing.image_size is None:
        raise VTCError("image_size: got None, needed to un-pad the crops of an anyres image")
    top, bottom, left, right = valid_region(packing.image_size or canvas, canvas, packing.unpad)
    y, x = torch.arange(top, bottom), torch.arange(left, right)
    size = shrunk_canvas((len(y), len(x)), rows, packing.shrink)
    if size is not None:
        y, x = y[middle_lines(len(y), size[0])], x[middle_lines(len(x), size[1])]
    tile, patch, row = tile[y][:, x], patch[y][:, x], y[:, None].expand(-1, len(x))
    if packing.newline:
        close = torch.full((len(y), 1), -1)
        tile, patch = torch.cat([tile, close], 1), torch.cat([patch, close], 1)
        row = torch.cat([row, y[:, None]], 1)
    thumbnail = _tile_after_tile([0], rows * cols, around)
    return Layout(
        torch.cat([thumbnail.tile, tile.flatten()]),
        torch.cat([thumbnail.patch, patch.flatten()]),
        torch.cat([thumbnail.row, row.flatten()]),
    )


def _tile_after_tile(
    tiles: Sequence[int], patches: int, around: tuple[int, int], newline: bool = False
) -> Layout:
    """Tiles in this order, each with separators in front and behind, and a newline behind all."""
    tile = torch.tensor([*tiles])[:, None].expand(-1, patches)
    patch = torch.arange(patches).expand(len(tiles), -1)
    tile, patch = (torch.nn.functional.pad(x, around, value=-1).flatten() for x in (tile, patch))
    if newline:
        tile, patch = (torch.cat([x, x.new_tensor([-1])]) for x in (tile, patch))
    return Layout(tile, patch, torch.full_like(tile, -1))
