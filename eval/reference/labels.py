"""What each patch of each tile shows: targets for the vision tower, read off the object list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .lexicon import CHARACTERS, COLOR_NAMES, SHAPES, WORDS
from .scene import Item, Scene
from .tiles import PATCH, SIDE, TILE

IGNORE = -100
KIND_NAMES = ["background", "shape", "tag", "tagword", "record"]
# Number of classes of each dense head.
DENSE = {
    "kind": len(KIND_NAMES),
    "color": len(COLOR_NAMES),
    "shape": len(SHAPES),
    "char": 1 + len(CHARACTERS),  # class 0: no character here
    "d1": 10,
    "d2": 10,
    "word": len(WORDS),
    "row": SIDE,
    "col": SIDE,
    "thumb": 2,
}
# Presence targets of a whole tile, read from its CLS token.
PRESENCE = len(COLOR_NAMES) * len(SHAPES) + 2 * len(COLOR_NAMES) + len(WORDS) + 20

_COLOR = {name: i for i, name in enumerate(COLOR_NAMES)}
_SHAPE = {name: i for i, name in enumerate(SHAPES)}
_WORD = {name: i for i, name in enumerate(WORDS)}
_CHAR = {name: i + 1 for i, name in enumerate(CHARACTERS)}
_LEAST = {"crop": 10.0, "thumb": 8.0}  # px of a patch that an object must cover to own it


@dataclass
class Tiles:
    """Labels of one scene's tiles. ``owner`` is the object of each patch, -1 for background."""

    dense: dict[str, np.ndarray]  # name -> [tiles, patches]
    owner: np.ndarray  # [tiles, patches]
    presence: np.ndarray  # [tiles, PRESENCE]
    seen: list[list[int]]  # objects in each tile


def _cover(box: tuple[float, float, float, float]) -> list[tuple[int, int, float]]:
    """(patch row, patch column, covered area) for each patch of a canvas that a box touches."""
    x0, y0, x1, y1 = box
    found = []
    for row in range(max(0, int(y0 // PATCH)), int(np.ceil(y1 / PATCH))):
        tall = min(y1, (row + 1) * PATCH) - max(y0, row * PATCH)
        for col in range(max(0, int(x0 // PATCH)), int(np.ceil(x1 / PATCH))):
            wide = min(x1, (col + 1) * PATCH) - max(x0, col * PATCH)
            found.append((row, col, wide * tall))
    return found


def _features(item: Item, legible: bool) -> dict[str, int]:
    values = {"kind": KIND_NAMES.index(item.kind)}
    if item.color is not None:
        values["color"] = _COLOR[item.color]
    if item.shape is not None:
        values["shape"] = _SHAPE[item.shape]
    if legible and item.number is not None:
        values["d1"], values["d2"] = int(item.number[0]), int(item.number[1])
    if legible and item.word is not None:
        values["word"] = _WORD[item.word]
    return values


def _present(item: Item, legible: bool) -> list[int]:
    colors, shapes = len(COLOR_NAMES), len(SHAPES)
    base = colors * shapes
    color, found = item.color or "", []
    if item.kind == "shape":
        found.append(_COLOR[color] * shapes + _SHAPE[item.shape or ""])
    elif item.kind == "tag":
        found.append(base + _COLOR[color])
    elif item.kind == "tagword":
        found.append(base + colors + _COLOR[color])
    base += 2 * colors
    if legible and item.word is not None:
        found.append(base + _WORD[item.word])
    base += len(WORDS)
    if legible and item.number is not None:
        found += [base + int(item.number[0]), base + 10 + int(item.number[1])]
    return found


def label(scene: Scene) -> Tiles:
    """Labels for the thumbnail (tile 0) and the crops of a scene."""
    rows, cols = scene.grid
    count = 1 + rows * cols
    width, height = scene.image.size
    left, top = (cols * TILE - width) // 2, (rows * TILE - height) // 2
    dense = {name: np.full((count, SIDE * SIDE), IGNORE, dtype=np.int64) for name in DENSE}
    dense["kind"][:] = 0
    dense["char"][1:] = 0
    dense["row"][:] = np.arange(SIDE * SIDE) // SIDE
    dense["col"][:] = np.arange(SIDE * SIDE) % SIDE
    dense["thumb"][:] = 0
    dense["thumb"][0] = 1
    owner = np.full((count, SIDE * SIDE), -1, dtype=np.int64)
    best = np.zeros((count, SIDE * SIDE))
    best_char = np.zeros((count, SIDE * SIDE))
    presence = np.zeros((count, PRESENCE), dtype=np.float32)
    seen: list[list[int]] = [[] for _ in range(count)]

    def place(row: int, col: int) -> tuple[int, int]:
        tile = 1 + (row // SIDE) * cols + col // SIDE
        return tile, (row % SIDE) * SIDE + col % SIDE

    for index, item in enumerate(scene.objects):
        x0, y0, x1, y1 = item.box
        small = (
            x0 * TILE / width,
            y0 * TILE / height,
            x1 * TILE / width,
            y1 * TILE / height,
        )
        spots = [(0, min(r, SIDE - 1) * SIDE + min(c, SIDE - 1), a) for r, c, a in _cover(small)]
        canvas = (x0 + left, y0 + top, x1 + left, y1 + top)
        spots += [(*place(r, c), a) for r, c, a in _cover(canvas)]
        for tile, patch, area in spots:
            if area <= best[tile, patch]:
                continue
            best[tile, patch] = area
            legible = tile > 0
            for name in ("color", "shape", "d1", "d2", "word"):
                dense[name][tile, patch] = IGNORE
            if area < _LEAST["crop" if legible else "thumb"]:
                dense["kind"][tile, patch] = IGNORE
                continue
            owner[tile, patch] = index
            for name, value in _features(item, legible).items():
                dense[name][tile, patch] = value
        for tile in {spot[0] for spot in spots}:
            seen[tile].append(index)
            presence[tile, _present(item, tile > 0)] = 1.0
        for char, box in item.chars:
            moved = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
            for r, c, area in _cover(moved):
                tile, patch = place(r, c)
                if area > best_char[tile, patch] and area >= 8:
                    best_char[tile, patch] = area
                    dense["char"][tile, patch] = _CHAR[char]
    return Tiles(dense, owner, presence, seen)


def phrase(item: Item, legible: bool = True) -> str:
    """A short caption of one object."""
    if item.kind == "shape":
        return f"{item.color} {item.shape}"
    if item.kind == "record":
        return f"{item.word} {item.number}" if legible else "text"
    content = (item.number or item.word) if legible else ""
    return f"{item.color} box {content}".strip()
