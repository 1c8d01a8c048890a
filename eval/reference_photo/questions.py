"""What is asked about a scene, and whether an answer is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .sources import ALIKE, GARMENTS, KINDS, PAIRS

if TYPE_CHECKING:
    from .scene import Thing

TYPES = ("naming", "garment", "color", "exist", "count", "position", "reading")
PLACES = ("top left", "top right", "bottom left", "bottom right")
#: what signs say, besides numbers of two digits
WORDS = (
    "open", "exit", "taxi", "stop", "milk", "bread", "hotel", "bank", "cafe", "sale",
    "bus", "park", "north", "south", "gold", "river", "music", "pizza", "tea", "books",
    "gate", "road", "lake", "shop", "fish", "news", "quiet", "danger", "salt", "zoo",
)  # fmt: skip
PLURALS = {"fish": "fish", "dress": "dresses"}


@dataclass(frozen=True)
class Question:
    """A question with its single right answer."""

    type: str
    text: str
    answer: str


def ask(
    things: Sequence[Thing],
    sign: str | None,
    garment: str | None,
    counted: str | None,
    rng: np.random.Generator,
    limit: int,
) -> list[Question]:
    """At most `limit` of the questions that a scene allows: the number first, since scenes of many alike
    have few others, then one of each type before a second.

    Args:
        things: that were pasted, all of `KINDS` or all garments.
        sign: what a sign says.
        garment: what a photograph of a garment shows.
        counted: the kind whose number is asked for.
    """
    found = [Question("garment", "What garment is this?", garment)] if garment else []
    if sign:
        found.append(Question("reading", "What does the sign say?", sign))
    counts = Counter(thing.kind for thing in things)
    for thing in things:
        found.append(Question("naming", f"What is at the {thing.place}?", thing.kind))
        if counts[thing.kind] == 1:
            text = f"Where {_be(thing.kind)} the {thing.kind}?"
            found.append(Question("position", text, thing.place))
            if thing.dye:
                text = f"What color is the {thing.kind}?"
                found.append(Question("color", text, thing.dye))
    if counts:
        there = str(rng.choice(list(counts)))
        absent = _absent(counts.keys(), rng)
        asked = [(there, "yes"), (absent, "no")]
        rng.shuffle(asked)
        for kind, said in asked:
            text = f"{_be(kind).capitalize()} there {_one(kind)}?"
            found.append(Question("exist", text, said))
    if counted:
        plural = PLURALS.get(counted, counted + "s")
        found.append(Question("count", f"How many {plural} are there?", str(counts[counted])))
    turn: Counter[str] = Counter()
    ranked: list[tuple[int, int, Question]] = []
    for place in rng.permutation(len(found)):
        question = found[place]
        rank = -1 if question.type == "count" else turn[question.type]
        ranked.append((rank, len(ranked), question))
        turn[question.type] += 1
    return [question for _, _, question in sorted(ranked, key=lambda entry: entry[:2])][:limit]


def _absent(present: Set[str], rng: np.random.Generator) -> str:
    """What is not in a picture, nor like anything that is: a group first, as for what is there, so that
    the name alone says nothing."""
    groups = [(kind,) for kind in KINDS] if present <= KINDS.keys() else ALIKE
    free = [group for group in groups if not present & set(group)]
    return str(rng.choice(free[int(rng.integers(len(free)))]))


def _be(kind: str) -> str:
    return "are" if kind in PAIRS else "is"


def _one(kind: str) -> str:
    if kind in PAIRS:
        return kind
    return ("an " if kind[0] in "aeiou" else "a ") + kind


def answers(kind: str) -> list[str]:
    """All answers of a type of question."""
    return {
        "naming": [*KINDS, *GARMENTS.values()],
        "garment": list(GARMENTS.values()),
        "color": ["red", "yellow", "green", "blue", "purple", "white", "black"],
        "exist": ["yes", "no"],
        "count": ["1", "2", "3", "4"],
        "position": list(PLACES),
        "reading": [*WORDS, *map(str, range(10, 100))],
    }[kind]


def is_correct(prediction: str, answer: str) -> bool:
    """Whether an answer is the right one, but for case, spaces and a full stop."""
    return " ".join(prediction.lower().split()).rstrip(".") == answer
