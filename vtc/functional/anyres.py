"""The geometry of "anyres" images: which crops an image has and how their tokens are packed.

LLaVA-NeXT squashes the whole image into a thumbnail (tile 0) and cuts a resized, centre-padded copy
into crops (tiles 1..). The crops' patches are laid out on one canvas, the padding is cut away
("un-padding") and every remaining canvas row is closed by a newline token:

    thumbnail patches | canvas row 0, newline | canvas row 1, newline | ...

Other families string the same tiles together differently; `vtc.packing` knows all of them.

Source: Liu et al., "LLaVA-NeXT" (2024); the packing follows transformers'
`LlavaNextModel.pack_image_features`. Pure functions of integers, no model needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def middle_lines(extent: int, count: int) -> Tensor:
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
