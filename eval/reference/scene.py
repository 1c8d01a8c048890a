"""Rendered scenes and documents with questions: numpy, pillow and matplotlib's fonts are enough.

An image is drawn on a canvas of whole tiles, then cropped evenly on two sides. The processor pads
it back to the same canvas, so un-padding is exercised and no object straddles two crops. What is
where differs from tile to tile: some tiles are crowded, some empty, some are pages of small print.
Without that, a method that spends more tokens on some crops than on others could not show it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .lexicon import COLOR_NAMES, COLORS, SHAPES, WORDS
from .questions import Question, ask
from .tiles import TILE

SPLITS = {"train": 0, "val": 1, "test": 2}
# Training adds "sparse": a few shapes, so that most questions about a quadrant have one answer.
KINDS = {"full": 0.34, "cluster": 0.26, "document": 0.2, "mixed": 0.2}
GRID_WEIGHTS = {
    (2, 2): 0.5,
    (1, 2): 0.1,
    (2, 1): 0.1,
    (1, 3): 0.1,
    (3, 1): 0.1,
    (2, 3): 0.05,
    (3, 2): 0.05,
}
ROW, LINE = 21, 12  # pitch of object rows and of printed lines, in px

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Item:
    """One object. ``box`` and the boxes of ``chars`` are (left, top, right, bottom) in image px."""

    kind: str  # "shape", "tag" (number in a box), "tagword" (word in a box) or "record"
    box: Box
    color: str | None = None
    shape: str | None = None
    word: str | None = None
    number: str | None = None
    chars: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()


@dataclass(frozen=True)
class Scene:
    """An image, what is in it, and questions about it."""

    image: Image.Image
    kind: str
    grid: tuple[int, int]
    objects: list[Item]
    questions: list[Question] = field(default_factory=list)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _length(name: str, size: int, text: str) -> float:
    return _font(name, size).getlength(text)


class _Painter:
    """Draws objects on a canvas and remembers them."""

    def __init__(self, rng: np.random.Generator, image: Image.Image) -> None:
        self.rng = rng
        self.image = image
        self.draw = ImageDraw.Draw(image)
        self.items: list[Item] = []
        self.numbers = list(rng.permutation(COLOR_NAMES))
        self.boxes = list(rng.permutation(COLOR_NAMES))
        self.words = [str(word) for word in rng.permutation(WORDS)]
        self.font = ("DejaVuSans", "DejaVuSans-Bold")[int(rng.integers(2))]
        # A few colours and shapes per scene make counts and look-alikes frequent.
        self.colors = list(rng.choice(COLOR_NAMES, int(rng.integers(3, 8)), replace=False))
        self.shapes = list(rng.choice(SHAPES, int(rng.integers(3, 7)), replace=False))

    def text(
        self, x: int, middle: int, text: str, size: int, color: tuple[int, int, int]
    ) -> list[tuple[str, tuple[float, float, float, float]]]:
        """Draw ``text`` with its capital height centred on ``middle``; return character boxes."""
        # DejaVu: digits and capitals are 0.73 em tall, and sit on the baseline.
        base = middle + round(0.365 * size)
        self.draw.text((x, base), text, font=_font(self.font, size), fill=color, anchor="ls")
        edges = [x + _length(self.font, size, text[:i]) for i in range(len(text) + 1)]
        top = base - 0.75 * size
        return [
            (char, (edges[i], top, edges[i + 1], base + 1.0))
            for i, char in enumerate(text)
            if char != " "
        ]

    def _size(self, kind: str, text: str, size: int) -> tuple[int, int]:
        wide = math.ceil(_length(self.font, size, text))
        return (wide, size) if kind == "record" else (wide + 6, size + 4)

    def plan(self, kind: str, page: bool = False) -> dict | None:
        """Choose an object of this kind and its size; None when its pool is used up."""
        rng = self.rng
        size = int(rng.integers(10, 12))
        if kind == "shape":
            tall = int(rng.integers(13, 20))
            color, shape = str(rng.choice(self.colors)), str(rng.choice(self.shapes))
            return {"kind": kind, "wh": (tall, tall), "color": color, "shape": shape}
        number = f"{int(rng.integers(0, 100)):02d}"
        pool = {"tag": self.numbers, "tagword": self.boxes, "record": self.words}[kind]
        if not pool or not self.words:
            return None
        if kind == "record":
            word = self.words.pop()
            text = f"{word} {number}"
            plan = {"word": word, "number": number}
        elif kind == "tag":
            text = number
            plan = {"number": number, "color": str(pool.pop())}
        else:
            text = self.words.pop()
            plan = {"word": text, "color": str(pool.pop())}
        size = 10 if page and size > 10 and rng.random() < 0.5 else size
        return {
            "kind": kind,
            "text": text,
            "size": size,
            "wh": self._size(kind, text, size),
            **plan,
        }

    def put(self, plan: dict, x: int, y: int) -> None:
        """Draw a planned object with its top left corner at (x, y)."""
        wide, tall = plan["wh"]
        box = (x, y, x + wide, y + tall)
        kind = plan["kind"]
        chars: list = []
        if kind == "shape":
            self._shape(plan["shape"], COLORS[plan["color"]], box)
        elif kind == "record":
            red, green, blue = (int(v) for v in self.rng.integers(0, 70, 3))
            ink = (red, green, blue)
            chars = self.text(x, y + tall // 2, plan["text"], plan["size"], ink)
        else:
            fill = COLORS[plan["color"]]
            self.draw.rectangle((x, y, x + wide - 1, y + tall - 1), fill=fill)
            bright = fill[0] * 0.3 + fill[1] * 0.6 + fill[2] * 0.1 > 135
            ink = (0, 0, 0) if bright else (255, 255, 255)
            chars = self.text(x + 3, y + tall // 2, plan["text"], plan["size"], ink)
        self.items.append(
            Item(
                kind,
                box,
                plan.get("color"),
                plan.get("shape"),
                plan.get("word"),
                plan.get("number"),
                tuple(chars),
            )
        )

    def _shape(self, shape: str, color: tuple[int, int, int], box: Box) -> None:
        x0, y0, x1, y1 = box[0], box[1], box[2] - 1, box[3] - 1
        side = x1 - x0
        third = max(2, round(side / 3))
        draw = self.draw
        if shape == "circle":
            draw.ellipse((x0, y0, x1, y1), fill=color)
        elif shape == "square":
            inset = max(1, side // 10)
            draw.rectangle((x0 + inset, y0 + inset, x1 - inset, y1 - inset), fill=color)
        elif shape == "triangle":
            draw.polygon([((x0 + x1) // 2, y0), (x0, y1), (x1, y1)], fill=color)
        elif shape == "cross":
            draw.rectangle((x0 + third, y0, x1 - third, y1), fill=color)
            draw.rectangle((x0, y0 + third, x1, y1 - third), fill=color)
        elif shape == "ring":
            draw.ellipse((x0, y0, x1, y1), outline=color, width=max(3, side // 4))
        else:
            draw.rectangle((x0, y0 + third, x1, y1 - third), fill=color)

    def fill_scene(
        self, area: Box, count: int, record_share: float, shapes_only: bool = False
    ) -> None:
        """Up to ``count`` objects in rows inside ``area``."""
        rng = self.rng
        left, top, right, bottom = area
        kinds = ["shape", "tag", "tagword", "record"]
        share = [0.56 - record_share, 0.24, 0.2, record_share]
        if shapes_only:
            share = [1.0, 0.0, 0.0, 0.0]
        rows = max(1, (bottom - top) // ROW)
        starts = [top + (bottom - top) * r // rows for r in range(rows)]
        pitch = (bottom - top) // rows
        cursor = [left] * rows
        for _ in range(count):
            plan = self.plan(str(rng.choice(kinds, p=share)))
            if plan is None:
                continue
            wide, tall = plan["wh"]
            fits = [r for r in range(rows) if right - cursor[r] >= wide + 2]
            if not fits or pitch < tall + 1:
                continue
            r = int(rng.choice(fits))
            slack = min(right - cursor[r] - wide - 2, 8)
            x = cursor[r] + 1 + int(rng.integers(0, slack + 1))
            y = starts[r] + int(rng.integers(0, max(1, pitch - tall)))
            self.put(plan, x, y)
            cursor[r] = x + wide + 1

    def fill_page(self, area: Box, lines: int) -> None:
        """``lines`` printed lines of "word number" inside ``area``."""
        rng = self.rng
        left, top, right, bottom = area
        room = (bottom - top - 1) // LINE
        margin = int(rng.integers(1, 12))
        chosen = sorted(rng.permutation(room)[:lines].tolist())
        shift = int(rng.integers(0, max(1, bottom - top - room * LINE)))
        for line in chosen:
            plan = self.plan("record", page=True)
            if plan is None:
                return
            wide = plan["wh"][0]
            x = left + min(margin + int(rng.integers(0, 3)), right - left - wide - 1)
            if x > left:
                self.put(plan, x, top + shift + line * LINE)

    def clutter(self, count: int) -> None:
        """Grey strokes under the objects, so that "not background" is not simply "has ink"."""
        rng = self.rng
        wide, tall = self.image.size
        for _ in range(count):
            x, y = int(rng.integers(0, wide)), int(rng.integers(0, tall))
            dx, dy = (int(v) for v in rng.integers(-14, 15, 2))
            grey = int(rng.integers(120, 200))
            self.draw.line((x, y, x + dx, y + dy), fill=(grey, grey, grey), width=1)


def _background(rng: np.random.Generator, size: tuple[int, int], page: bool) -> Image.Image:
    base = rng.integers(236, 253) + np.zeros(3) if page else rng.integers(196, 250, 3)
    small = base + rng.normal(0, 3 if page else 9, (4, 4, 3))
    small = np.clip(small, 0, 255).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def _tile_plan(rng: np.random.Generator, kind: str, tiles: int) -> list[tuple[str, int]]:
    """For each tile what fills it, and with how many objects or lines."""
    plan = [("scene", 0)] * tiles
    order = rng.permutation(tiles)
    if kind == "full":
        return [("scene", int(n)) for n in rng.integers(2, 6, tiles)]
    if kind == "sparse":
        return [("shapes", int(n)) for n in rng.integers(0, 3, tiles)]
    if kind == "cluster":
        for tile in order[: int(rng.integers(1, max(2, tiles // 2) + 1))]:
            plan[tile] = ("scene", int(rng.integers(4, 8)))
        return plan
    if kind == "document":
        for tile in order[: int(rng.integers(max(1, tiles // 2), tiles + 1))]:
            plan[tile] = ("page", int(rng.integers(2, 6)))
        return plan
    for tile in order:
        draw = rng.random()
        if draw < 0.35:
            plan[tile] = ("page", int(rng.integers(2, 6)))
        elif draw < 0.8:
            plan[tile] = ("scene", int(rng.integers(3, 7)))
    if all(count == 0 for _, count in plan):
        plan[order[0]] = ("scene", 5)
    return plan


def _cut(rng: np.random.Generator, rows: int, cols: int) -> tuple[int, int]:
    """Pixels taken off at the top and bottom, or at the left and right. Half of the images: 0."""
    if rng.random() < 0.5:
        return 0, 0
    vertical = rng.random() < 0.5
    most = 10 if (rows if vertical else cols) == 1 else 22
    cut = int(rng.integers(1, most + 1))
    return (cut, 0) if vertical else (0, cut)


def render(
    rng: np.random.Generator,
    kinds: dict[str, float] | None = None,
    grids: dict[tuple[int, int], float] | None = None,
) -> Scene:
    """One scene without questions, drawn from ``rng``."""
    kinds, grids = kinds or KINDS, grids or GRID_WEIGHTS
    weights = np.array(list(kinds.values()))
    kind = list(kinds)[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    weights = np.array(list(grids.values()))
    rows, cols = list(grids)[int(rng.choice(len(grids), p=weights / weights.sum()))]
    cut_y, cut_x = _cut(rng, rows, cols)
    canvas = _background(rng, (cols * TILE, rows * TILE), page=kind == "document")
    painter = _Painter(rng, canvas)
    painter.clutter(int(rng.integers(0, 3 if kind == "document" else 4 * rows * cols)))
    records = float(rng.choice([0.04, 0.12, 0.3]))
    for tile, (fill, count) in enumerate(_tile_plan(rng, kind, rows * cols)):
        top, left = tile // cols * TILE, tile % cols * TILE
        area = (
            max(left, cut_x),
            max(top, cut_y),
            min(left + TILE, cols * TILE - cut_x),
            min(top + TILE, rows * TILE - cut_y),
        )
        if fill == "page":
            painter.fill_page(area, count)
        else:
            painter.fill_scene(area, count, records, fill == "shapes")
    pixels = np.asarray(canvas).astype(np.int16)
    noise = int(rng.integers(1, 8))
    pixels = pixels + rng.integers(-noise, noise + 1, pixels.shape, dtype=np.int16)
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    pixels = pixels[cut_y : rows * TILE - cut_y, cut_x : cols * TILE - cut_x]
    items = [_shift(item, -cut_x, -cut_y) for item in painter.items]
    return Scene(Image.fromarray(np.ascontiguousarray(pixels)), kind, (rows, cols), items)


def _shift(item: Item, dx: int, dy: int) -> Item:
    def move(box: Any) -> Any:
        return (box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy)

    chars = tuple((char, move(box)) for char, box in item.chars)
    return Item(item.kind, move(item.box), item.color, item.shape, item.word, item.number, chars)


def make_scene(
    split: str,
    seed: int,
    index: int,
    kinds: dict[str, float] | None = None,
    grids: dict[tuple[int, int], float] | None = None,
    questions: int = 16,
    per_type: int = 3,
) -> Scene:
    """Scene number ``index`` of a split: the same arguments always give the same scene."""
    rng = np.random.default_rng([SPLITS[split], seed, index])
    scene = render(rng, kinds, grids)
    asked = ask(scene, rng, questions, per_type)
    return Scene(scene.image, scene.kind, scene.grid, scene.objects, asked)


def scenes(
    split: str = "test",
    n: int = 100,
    seed: int = 0,
    kinds: Sequence[str] | None = None,
    questions: int = 16,
    per_type: int = 3,
) -> Iterator[Scene]:
    """The first ``n`` scenes of ``split`` ("train", "val" or "test"), with their questions.

    ``kinds`` restricts the scenes to some of "full", "cluster", "document" and "mixed".
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {sorted(SPLITS)}, got {split!r}")
    if not isinstance(n, int) or n < 0:
        raise ValueError(f"n must be a whole number >= 0, got {n!r}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number >= 0, got {seed!r}")
    names = list(KINDS) if kinds is None else list(kinds)
    unknown = [kind for kind in names if kind not in KINDS]
    if unknown or not names:
        raise ValueError(f"kinds must be some of {sorted(KINDS)}, got {kinds!r}")
    weights = {kind: KINDS[kind] for kind in KINDS if kind in names}
    return (
        make_scene(split, seed, index, weights, None, questions, per_type) for index in range(n)
    )
