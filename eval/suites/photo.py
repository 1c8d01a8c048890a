"""Things, colours, numbers, places and words on real pictures, for the reference model `photo`."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vtc.errors import VTCError
from vtc.eval.reference_photo import is_correct
from vtc.eval.reference_photo.data import FACTS, QUESTIONS
from vtc.eval.reference_photo.questions import TYPES
from vtc.eval.suites.base import Item, Suite, digest

if TYPE_CHECKING:
    from PIL.Image import Image

    from vtc.eval.common.records import Answer

HOW = "made by `python -m vtc.eval.reference_photo.data`; the pictures do not ship"


@dataclass
class Photo(Suite):
    """Questions about photographs and about things pasted on them, scored by exact match.

    Attributes:
        data: the folder that `python -m vtc.eval.reference_photo.data` wrote.
        blind: whether to ask without the pictures, for the baseline of what words alone give away.
    """

    data: str = ""
    blind: bool = False
    _items: list[Item] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "photo"
    max_new_tokens: ClassVar[int] = 8

    def items(self) -> Sequence[Item]:
        if self._items:
            return self._items
        folder = Path(self.data)
        if not self.data or not (folder / QUESTIONS).is_file():
            raise VTCError(f"data: got {self.data!r}, allowed is a folder {HOW}")
        found = []
        for number, line in enumerate((folder / QUESTIONS).read_text().splitlines()):
            try:
                row = json.loads(line)
                picture = str(row["picture"])
                found.append(
                    Item(
                        id=row["id"],
                        images=() if self.blind else (_opener(folder / f"{picture}.png"),),
                        prompt=row["question"],
                        answers=(row["answer"],),
                        kind=row["type"],
                        cluster=picture,
                    )
                )
            except (ValueError, KeyError, TypeError) as error:
                raise VTCError(f"data: line {number + 1} of {QUESTIONS}: {error!r}") from error
        self._items = found
        return self._items

    def score(self, item: Item, prediction: str) -> float:
        return float(is_correct(prediction, item.answers[0]))

    def facts(self) -> dict[str, Any]:
        """What made the folder, and a SHA-256 over questions, answers and the pixels that were drawn.

        Raises:
            VTCError: the folder does not say what made it.
        """
        asked = [(item.id, item.prompt, item.answers) for item in self.items()]
        try:
            known = json.loads((Path(self.data) / FACTS).read_text())
            pixels = sorted(known.pop("pixels").items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise VTCError(f"data: {FACTS}: {error!r}; the folder is {HOW}") from error
        return {
            "source": "vtc.eval.reference_photo",
            **known,
            "blind": self.blind,
            "count": len(self._items),
            "fingerprint": digest([*asked, pixels]),
        }

    def summary(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Accuracy, over all questions and by type."""
        out = super().summary(answers)
        for kind in TYPES:
            members = [answer for answer in answers if answer.kind == kind]
            if members:
                out[kind] = super().summary(members)[self.metric]
        return out


@functools.cache
def _opener(path: Path) -> Any:
    """One call a picture: the runner opens it once for all its questions."""
    return functools.partial(_open, path)


def _open(path: Path) -> Image:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")
