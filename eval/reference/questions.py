"""Questions about a scene whose answers follow from its list of objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .lexicon import COLOR_NAMES, PLURALS, QUADRANTS, SHAPES

if TYPE_CHECKING:
    from .scenes import Item, Scene

# type -> group
TYPES = {
    "tag": "reading",
    "tagword": "reading",
    "value": "reading",
    "color": "attribute",
    "shape": "attribute",
    "exist": "exist",
    "count": "count",
    "where": "position",
    "at": "position",
}
CLEAR = 3  # px that an object must keep from the mid-lines before its quadrant is asked for


@dataclass(frozen=True)
class Question:
    """One question. ``about`` holds the indices of the objects that the answer rests on."""

    text: str
    answer: str
    type: str
    group: str
    about: tuple[int, ...] = ()


def quadrant(item: Item, size: tuple[int, int]) -> str | None:
    """Quadrant of the image (width, height) that holds the object; None if it is near a middle."""
    x0, y0, x1, y1 = item.box
    width, height = size
    if x1 <= width / 2 - CLEAR:
        side = "left"
    elif x0 >= width / 2 + CLEAR:
        side = "right"
    else:
        return None
    if y1 <= height / 2 - CLEAR:
        return f"top {side}"
    if y0 >= height / 2 + CLEAR:
        return f"bottom {side}"
    return None


def _question(text: str, answer: str, kind: str, about: list[int]) -> Question:
    return Question(text, answer, kind, TYPES[kind], tuple(about))


def _lookups(objects: list[Item]) -> list[Question]:
    """Reading and attribute questions; each names its object without ambiguity."""
    found = []
    for index, item in enumerate(objects):
        if item.kind == "tag":
            text = f"what number is in the {item.color} box ?"
            found.append(_question(text, item.number, "tag", [index]))
        elif item.kind == "tagword":
            text = f"what word is in the {item.color} box ?"
            found.append(_question(text, item.word, "tagword", [index]))
        elif item.kind == "record":
            text = f"what is the value of {item.word} ?"
            found.append(_question(text, item.number, "value", [index]))
    shapes = [(i, item) for i, item in enumerate(objects) if item.kind == "shape"]
    by_shape = Counter(item.shape for _, item in shapes)
    by_color = Counter(item.color for _, item in shapes)
    for index, item in shapes:
        if by_shape[item.shape] == 1:
            text = f"what color is the {item.shape} ?"
            found.append(_question(text, item.color, "color", [index]))
        if by_color[item.color] == 1:
            text = f"what shape is the {item.color} object ?"
            found.append(_question(text, item.shape, "shape", [index]))
    return found


def _exist(shapes: list[tuple[int, Item]], rng: np.random.Generator) -> list[Question]:
    """Balanced yes/no; most "no" pairs have their colour and their shape present, apart."""
    pairs = sorted({(item.color, item.shape) for _, item in shapes})
    if not pairs:
        return []
    found = []
    for _ in range(3):
        answer = "yes" if rng.random() < 0.5 else "no"
        if answer == "yes":
            color, shape = pairs[int(rng.integers(len(pairs)))]
        else:
            close = [
                (c, s)
                for c in sorted({c for c, _ in pairs})
                for s in sorted({s for _, s in pairs})
                if (c, s) not in pairs
            ]
            if close and rng.random() < 0.7:
                color, shape = close[int(rng.integers(len(close)))]
            else:
                absent = [(c, s) for c in COLOR_NAMES for s in SHAPES if (c, s) not in pairs]
                color, shape = absent[int(rng.integers(len(absent)))]
        about = [i for i, item in shapes if item.color == color or item.shape == shape]
        found.append(_question(f"is there a {color} {shape} ?", answer, "exist", about))
    return found


def _count(shapes: list[tuple[int, Item]], rng: np.random.Generator) -> list[Question]:
    """How many of a colour or of a shape, 0 to 4, each count about as often as it can be asked."""
    if not shapes:
        return []
    options: dict[int, list[Question]] = {}
    for name in COLOR_NAMES:
        about = [i for i, item in shapes if item.color == name]
        text = f"how many {name} shapes are there ?"
        options.setdefault(len(about), []).append(_question(text, str(len(about)), "count", about))
    for name in SHAPES:
        about = [i for i, item in shapes if item.shape == name]
        text = f"how many {PLURALS[name]} are there ?"
        options.setdefault(len(about), []).append(_question(text, str(len(about)), "count", about))
    counts = [count for count in options if count <= 4]
    found = []
    for _ in range(3):
        pool = options[counts[int(rng.integers(len(counts)))]]
        found.append(pool[int(rng.integers(len(pool)))])
    return found


def _position(shapes: list[tuple[int, Item]], size: tuple[int, int]) -> list[Question]:
    pairs = Counter((item.color, item.shape) for _, item in shapes)
    places = {index: quadrant(item, size) for index, item in shapes}
    found = []
    for index, item in shapes:
        place = places[index]
        if pairs[(item.color, item.shape)] == 1 and place:
            text = f"where is the {item.color} {item.shape} ?"
            found.append(_question(text, place, "where", [index]))
    # An object that straddles a mid-line would make "at the top left" ambiguous.
    vague = {name for index, item in shapes if not places[index] for name in _touched(item, size)}
    for name in QUADRANTS:
        inside = [index for index, place in places.items() if place == name]
        if len(inside) == 1 and name not in vague:
            item = dict(shapes)[inside[0]]
            text = f"what color is the shape at the {name} ?"
            found.append(_question(text, item.color, "at", inside))
            text = f"what shape is at the {name} ?"
            found.append(_question(text, item.shape, "at", inside))
    return found


def _touched(item: Item, size: tuple[int, int]) -> list[str]:
    """Quadrants that an object reaches into or nearly touches."""
    x0, y0, x1, y1 = item.box
    tall = [("top", y0 < size[1] / 2 + CLEAR), ("bottom", y1 > size[1] / 2 - CLEAR)]
    wide = [("left", x0 < size[0] / 2 + CLEAR), ("right", x1 > size[0] / 2 - CLEAR)]
    return [f"{v} {h}" for v, up in tall if up for h, on in wide if on]


def ask(scene: Scene, rng: np.random.Generator, limit: int, per_type: int) -> list[Question]:
    """Up to ``limit`` different questions, at most ``per_type`` of a type, in random order.

    The limit is filled type by type in turns, so a crowded page does not crowd out other types.
    """
    shapes = [(i, item) for i, item in enumerate(scene.objects) if item.kind == "shape"]
    every = _lookups(scene.objects) + _exist(shapes, rng) + _count(shapes, rng)
    every += _position(shapes, scene.image.size)
    every = list(dict.fromkeys(every))
    order = rng.permutation(len(every))
    by_type: dict[str, list[Question]] = {name: [] for name in TYPES}
    for index in order:
        by_type[every[index].type].append(every[index])
    chosen: list[Question] = []
    names = [str(name) for name in rng.permutation(list(TYPES))]
    for turn in range(per_type):
        chosen += [by_type[name][turn] for name in names if len(by_type[name]) > turn]
    return chosen[:limit]


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends."""
    return " ".join(text.lower().split()).strip(" .,!?:")


def is_correct(prediction: str, answer: str) -> bool:
    """Exact match after :func:`normalise`."""
    return normalise(prediction) == normalise(answer)


def majority(questions: Iterable[Question]) -> tuple[dict[str, float], dict[str, int]]:
    """Share of the most frequent answer, and number of questions, by type and over "all".

    The share over all is that of giving each type its own most frequent answer.
    """
    answers: dict[str, Counter[str]] = {}
    for question in questions:
        answers.setdefault(question.type, Counter())[question.answer] += 1
    count = {kind: seen.total() for kind, seen in answers.items()}
    top = {kind: seen.most_common(1)[0][1] for kind, seen in answers.items()}
    share = {kind: top[kind] / count[kind] for kind in answers}
    share["all"] = sum(top.values()) / max(1, sum(count.values()))
    count["all"] = sum(count.values())
    return share, count
