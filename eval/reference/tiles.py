"""Tiles of an image: which grid it gets, its pixels per tile, and the order of its tokens.

This is the training path. It must give the same pixels and the same order as the real processor
and ``pack_image_features``; ``tests/reference`` checks that bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

TILE = 64
PATCH = 8
SIDE = TILE // PATCH
# (rows, columns) of the crop grid, in the order of ``image_grid_pinpoints``.
GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (2, 3), (3, 2)]

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


def select_grid(height: int, width: int) -> tuple[int, int]:
    """The grid LLaVA-NeXT picks: most effective pixels first, then least waste."""
    best, best_fit, best_waste = GRIDS[0], -1, 1 << 60
    for rows, cols in GRIDS:
        h, w = rows * TILE, cols * TILE
        scale = min(w / width, h / height)
        fit = min(int(width * scale) * int(height * scale), width * height)
        waste = w * h - fit
        if fit > best_fit or (fit == best_fit and waste < best_waste):
            best, best_fit, best_waste = (rows, cols), fit, waste
    return best


def normalise(pixels: np.ndarray) -> np.ndarray:
    """uint8 ``[..., H, W, 3]`` to the float32 ``[..., 3, H, W]`` that the tower reads."""
    scaled = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis((scaled - MEAN) / STD, -1, -3))


def split_tiles(image: Image.Image) -> np.ndarray:
    """Thumbnail and crops as uint8 ``[1 + rows * cols, TILE, TILE, 3]``.

    Only for images that need no resizing: they must span their canvas in one direction.
    """
    width, height = image.size
    rows, cols = select_grid(height, width)
    if height != rows * TILE and width != cols * TILE:
        raise ValueError(
            f"image must span its {rows}x{cols} grid of {TILE} px tiles in one direction, "
            f"got {width}x{height} px"
        )
    canvas = np.zeros((rows * TILE, cols * TILE, 3), dtype=np.uint8)
    top, left = (rows * TILE - height) // 2, (cols * TILE - width) // 2
    canvas[top : top + height, left : left + width] = np.asarray(image)
    crops = canvas.reshape(rows, TILE, cols, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    thumbnail = np.asarray(image.resize((TILE, TILE), Image.Resampling.BICUBIC))
    return np.concatenate([thumbnail[None], crops])


@dataclass(frozen=True)
class Layout:
    """Order of the image tokens: ``tile`` and ``patch`` of each, -1 for a newline."""

    tile: np.ndarray
    patch: np.ndarray

    def __len__(self) -> int:
        return len(self.tile)


def token_layout(height: int, width: int) -> Layout:
    """Thumbnail first, then the un-padded grid row by row, a newline after each row."""
    rows, cols = select_grid(height, width)
    tall, wide = rows * SIDE, cols * SIDE
    y0, y1, x0, x1 = 0, tall, 0, wide
    if width / height > wide / tall:
        pad = (tall - int(round(height * (wide / width), 7))) // 2
        y0, y1 = pad, tall - pad
    else:
        pad = (wide - int(round(width * (tall / height), 7))) // 2
        x0, x1 = pad, wide - pad
    y, x = np.mgrid[y0:y1, x0:x1]
    tile = 1 + (y // SIDE) * cols + x // SIDE
    patch = (y % SIDE) * SIDE + x % SIDE
    edge = ((0, 0), (0, 1))
    tile = np.pad(tile, edge, constant_values=-1).ravel()
    patch = np.pad(patch, edge, constant_values=-1).ravel()
    return Layout(
        np.concatenate([np.zeros(SIDE * SIDE, dtype=np.int64), tile]),
        np.concatenate([np.arange(SIDE * SIDE), patch]),
    )
