"""The geometry of "anyres" images: which crops an image has and how their tokens are packed.

LLaVA-NeXT squashes the whole image into a thumbnail (tile 0) and cuts a resized, centre-padded copy
into crops (tiles 1..). The crops' patches are laid out on one canvas, the padding is cut away
("un-padding") and every remaining canvas row is closed by a newline token:

    thumbnail patches | canvas row 0, newline | canvas row 1, newline | ...

Other families string the same tiles together differently; `pack_layout` knows all of them.

Source: Liu et al., "LLaVA-NeXT" (2024); the packing follows transformers'
`LlavaNextModel.pack_image_features`. Pure functions of integers, no model needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.errors import VTCError

UNPAD_RULES = ("hf", "official", "none")
#: how the tiles of an image with crops follow each other
ORDERS = ("canvas", "tiles", "thumbnail_last")


def select_resolution(
    image_size: tuple[int, int], resolutions: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """The resolution `(height, width)` that keeps most effective pixels of an image.

    Ties are decided by the least wasted area, then by the order of `resolutions` (LLaVA's
    best-resolution rule).

    Args:
        image_size: `(height, width)` in pixels.
        resolutions: candidates, each `(height, width)` in pixels.
    """
    height, width = image_size
    best, best_key = None, None
    for res_height, res_width in resolutions:
        scale = min(res_width / width, res_height / height)
        scaled = int(width * scale) * int(height * scale)
        effective = min(scaled, width * height)
        key = (effective, -(res_width * res_height - effective))
        if best_key is None or key > best_key:
            best, best_key = (int(res_height), int(res_width)), key
    if best is None:
        raise VTCError("resolutions: got an empty list, need at least one (height, width)")
    return best


def tile_grid(
    image_size: tuple[int, int], resolutions: Sequence[tuple[int, int]], tile_size: int
) -> tuple[int, int]:
    """The crops `(rows, cols)` of an image: its best resolution in units of `tile_size` pixels."""
    height, width = select_resolution(image_size, resolutions)
    return height // tile_size, width // tile_size


def valid_region(
    image_size: tuple[int, int], canvas: tuple[int, int], rule: str = "hf"
) -> tuple[int, int, int, int]:
    """The rows and columns of the canvas that hold image and not padding.

    Args:
        image_size: original `(height, width)` in pixels.
        canvas: `(rows, cols)` of the crops' patches together.
        rule: `"hf"` rounds to 7 digits before truncating, as transformers does; `"official"`
            truncates, as the LLaVA code base does; `"none"` keeps the whole canvas.

    Returns:
        `(top, bottom, left, right)`, half-open, in patches. An odd amount of padding leaves one
        padding line inside, as in both code bases. At extreme aspect ratios `"hf"` can leave an
        empty region, exactly as transformers does; `"official"` keeps at least one line (there the
        official code fails).
    """
    if rule not in UNPAD_RULES:
        raise VTCError(f"unpad: got {rule!r}, allowed are {', '.join(UNPAD_RULES)}")
    height, width = image_size
    rows, cols = canvas
    if rule == "none":
        return 0, rows, 0, cols

    def truncate(value: float) -> int:
        return int(round(value, 7)) if rule == "hf" else int(value)

    def margin(extent: int, inner: int) -> int:
        pad = (extent - inner) // 2
        return pad if rule == "hf" else min(pad, (extent - 1) // 2)

    if width / height > cols / rows:
        inner = truncate(height * (cols / width))
        pad = margin(rows, inner)
        return pad, rows - pad, 0, cols
    inner = truncate(width * (rows / height))
    pad = margin(cols, inner)
    return 0, rows, pad, cols - pad


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


def pack_layout(
    patch_grid: tuple[int, int],
    crops: tuple[int, int] | None = None,
    image_size: tuple[int, int] | None = None,
    newline: bool = False,
    unpad: str = "hf",
    *,
    frames: int = 1,
    order: str = "canvas",
    shrink: int | None = None,
    lead: bool = False,
    tail: bool = False,
) -> Layout:
    """The packed sequence of one image or clip.

    Args:
        patch_grid: `(rows, cols)` of one tile's patches.
        crops: `(rows, cols)` of the crops, or None for a single tile or a clip.
        image_size: original `(height, width)` in pixels; needed to un-pad crops.
        newline: whether a newline token closes every canvas row (and a single tile, and a clip).
        unpad: see `valid_region`.
        frames: tiles of a clip, one after the other; 1 with crops.
        order: `"canvas"` (above), `"tiles"` (thumbnail, then crop after crop, nothing un-padded) or
            `"thumbnail_last"` (crop after crop, then the thumbnail).
        shrink: a canvas of clearly more patches than this many tiles is scaled down to about that
            many (LLaVA-OneVision's `anyres_max`), see `shrunk_canvas`.
        lead: whether a CLS token stands in front of every tile (as a separator).
        tail: whether a separator stands behind every tile.
    """
    if order not in ORDERS:
        raise VTCError(f"order: got {order!r}, allowed are {', '.join(ORDERS)}")
    rows, cols = patch_grid
    if crops is None:
        return _tile_after_tile(list(range(frames)), rows * cols, lead, tail, newline)
    if order != "canvas":
        crop_tiles = list(range(1, 1 + crops[0] * crops[1]))
        tiles = [0, *crop_tiles] if order == "tiles" else [*crop_tiles, 0]
        return _tile_after_tile(tiles, rows * cols, lead, tail, False)

    tile, patch = canvas_provenance(patch_grid, crops)
    region = (0, tile.shape[0], 0, tile.shape[1])
    if unpad != "none":
        if image_size is None:
            raise VTCError("image_size: got None, needed to un-pad the crops of an anyres image")
        region = valid_region(image_size, tuple(tile.shape), unpad)  # type: ignore[arg-type]
    top, bottom, left, right = region
    y, x = torch.arange(top, bottom), torch.arange(left, right)
    size = shrunk_canvas((len(y), len(x)), rows, shrink)
    if size is not None:
        y, x = y[_middle_lines(len(y), size[0])], x[_middle_lines(len(x), size[1])]
    tile, patch, row = tile[y][:, x], patch[y][:, x], y[:, None].expand(-1, len(x))
    if newline:
        close = torch.full((len(y), 1), -1)
        tile, patch = torch.cat([tile, close], 1), torch.cat([patch, close], 1)
        row = torch.cat([row, y[:, None]], 1)
    thumbnail = _tile_after_tile([0], rows * cols, lead, tail, False)
    return Layout(
        torch.cat([thumbnail.tile, tile.flatten()]),
        torch.cat([thumbnail.patch, patch.flatten()]),
        torch.cat([thumbnail.row, row.flatten()]),
    )


def _tile_after_tile(
    tiles: Sequence[int], patches: int, lead: bool, tail: bool, newline: bool
) -> Layout:
    around = (int(lead), int(tail))
    tile = torch.tensor(tiles)[:, None].expand(-1, patches)
    patch = torch.arange(patches).expand(len(tiles), -1)
    tile, patch = (torch.nn.functional.pad(x, around, value=-1).flatten() for x in (tile, patch))
    if newline:
        tile, patch = (torch.cat([x, x.new_tensor([-1])]) for x in (tile, patch))
    return Layout(tile, patch, torch.full_like(tile, -1))


def shrunk_canvas(
    canvas: tuple[int, int], tile_rows: int, max_tiles: int | None
) -> tuple[int, int] | None:
    """What a canvas of `(rows, cols)` un-padded patches is scaled down to, None where it stays.

    Args:
        canvas: un-padded patches.
        tile_rows: rows of patches of one tile.
        max_tiles: the `N` of `anyres_max_N`, None for no limit.

    Each cell of the smaller canvas is a bilinear mixture of up to four patches. It goes by the patch
    that its centre falls into; the patches between them have no token.
    """
    if max_tiles is None:
        return None
    ratio = math.sqrt(canvas[0] * canvas[1] / (max_tiles * tile_rows**2))
    return (int(canvas[0] // ratio), int(canvas[1] // ratio)) if ratio > 1.1 else None


def _middle_lines(extent: int, count: int) -> Tensor:
    """The lines, of `extent`, that the centres of `count` <= `extent` even bins fall into."""
    return (2 * torch.arange(count) + 1) * extent // (2 * count)


def canvas_provenance(patch_grid: tuple[int, int], crops: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Tile (1..) and patch of every canvas cell, two int64 `[crop_rows*rows, crop_cols*cols]`."""
    rows, cols = patch_grid
    y = torch.arange(crops[0] * rows)[:, None]
    x = torch.arange(crops[1] * cols)[None, :]
    tile = 1 + (y // rows) * crops[1] + x // cols
    patch = (y % rows) * cols + x % cols
    return tile, patch
