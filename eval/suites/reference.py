"""The project's own benchmark: rendered scenes and documents, fresh ones from any seed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from vtc.errors import VTCError
from vtc.eval.reference import is_correct, scenes
from vtc.eval.reference.questions import TYPES
from vtc.eval.reference.scene import SPLITS, make_scene
from vtc.eval.suites.base import Item, Suite

if TYPE_CHECKING:
    from PIL.Image import Image

    from vtc.eval.common.records import Answer


@dataclass
class Reference(Suite):
    """Questions about rendered scenes with one right answer each, scored by exact match.

    The reference VLM was trained on split "train"; no scene of another split or seed was ever seen.

    Attributes:
        split: "train", "val" or "test".
        seed: of the scenes; another seed gives fresh ones. Seeds 0, 3, 9 and 20 of "val" and "test"
            are used elsewhere in the project.
        scenes: how many.
        questions: most questions about a scene.
    """

    split: str = "test"
    seed: int = 100
    scenes: int = 200
    questions: int = 16
    _items: list[Item] = field(default_factory=list, init=False, repr=False)
    _fingerprint: str = field(default="", init=False, repr=False)

    name: ClassVar[str] = "reference"
    max_new_tokens: ClassVar[int] = 8

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise VTCError(f"split: got {self.split!r}, allowed are {', '.join(SPLITS)}")
        for name, least in (("seed", 0), ("scenes", 1), ("questions", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise VTCError(f"{name}: got {value!r}, allowed are whole numbers >= {least}")

    def items(self) -> Sequence[Item]:
        if self._items:
            return self._items
        found, digest = [], hashlib.sha256()
        drawn = scenes(self.split, self.scenes, self.seed, questions=self.questions)
        for number, scene in enumerate(drawn):
            cluster = f"{self.split}-{self.seed}-{number:05d}"
            # drawn again when it is needed: thousands of images would fill the memory
            image = functools.partial(_image, self.split, self.seed, number)
            digest.update(scene.image.tobytes())
            for index, question in enumerate(scene.questions):
                digest.update(f"\n{question.text}\t{question.answer}".encode())
                found.append(
                    Item(
                        id=f"{cluster}-{index:02d}",
                        images=(image,),
                        prompt=question.text,
                        answers=(question.answer,),
                        kind=question.type,
                        cluster=cluster,
                    )
                )
        self._items, self._fingerprint = found, digest.hexdigest()
        return self._items

    def score(self, item: Item, prediction: str) -> float:
        return float(is_correct(prediction, item.answers[0]))

    def facts(self) -> dict[str, Any]:
        count = len(self.items())
        return {
            "source": "vtc.eval.reference.scene",
            "split": self.split,
            "seed": self.seed,
            "scenes": self.scenes,
            "questions": self.questions,
            "count": count,
            "fingerprint": self._fingerprint,
        }

    def summary(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Accuracy, over all questions and by group of types (reading, attribute, ...)."""
        out = super().summary(answers)
        for group in dict.fromkeys(TYPES.values()):
            members = [answer for answer in answers if TYPES.get(answer.kind) == group]
            if members:
                out[group] = super().summary(members)[self.metric]
        return out


def _image(split: str, seed: int, index: int) -> Image:
    return make_scene(split, seed, index).image
