"""The user's own questions: a JSONL file, a list of dictionaries, or a suite; by image, and split."""

from __future__ import annotations

import functools
import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vtc.errors import VTCError, nearest
from vtc.eval.scoring.anls import anls
from vtc.eval.scoring.contains import contains_answer
from vtc.eval.scoring.exact import exact_match
from vtc.eval.scoring.relaxed import relaxed_accuracy
from vtc.eval.scoring.vqa import vqa_accuracy
from vtc.eval.suites.base import Item, Suite, digest

if TYPE_CHECKING:
    from PIL.Image import Image

KEYS = ("image", "images", "question", "answer", "answers", "id")
#: how right an answer is, from 0 to 1, by name; of several accepted answers the best counts, but for
#: "vqa", where each is what one person said
METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact": lambda said, answers: max(exact_match(said, answer) for answer in answers),
    "contains": contains_answer,
    "anls": anls,
    "relaxed": lambda said, answers: max(relaxed_accuracy(said, answer) for answer in answers),
    "vqa": vqa_accuracy,
}
#: what stands for the answers of a question that has none; the runner does not ask those
UNKNOWN = ("",)


class Questions(Suite):
    """Questions of one's own.

    Each is a dictionary: `question`; `image`, or `images` for several in one prompt; perhaps `answer`,
    or `answers` of which any will do; perhaps `id`. In a file an image is a path, relative to the
    folder of the file; in Python it may be a `PIL.Image` too.

    Args:
        data: a JSONL file, or the dictionaries.
        metric: one of `METRICS`.
        max_new_tokens: how long an answer may get.

    Raises:
        VTCError: no such metric.
    """

    name: ClassVar[str] = "questions"

    def __init__(
        self,
        data: str | Path | Sequence[Mapping[str, Any]],
        metric: str = "exact",
        max_new_tokens: int = 32,
    ) -> None:
        if metric not in METRICS:
            raise VTCError(
                f"metric: got {metric!r}, allowed are {', '.join(METRICS)}{nearest(metric, METRICS)}"
            )
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise VTCError(
                f"max_new_tokens: got {max_new_tokens!r}, allowed are whole numbers >= 1"
            )
        self.data, self.metric_name = data, metric
        self.max_new_tokens = max_new_tokens  # type: ignore[misc]  # chosen with the data here
        self._items: list[Item] = []

    def items(self) -> Sequence[Item]:
        if not self._items:
            self._items = list(self._read())
        return self._items

    def score(self, item: Item, prediction: str) -> float:
        return METRICS[self.metric_name](prediction, item.answers)

    def facts(self) -> dict[str, Any]:
        asked = digest((i.id, i.prompt, i.answers, i.cluster) for i in self.items())
        return {"metric": self.metric_name, "count": len(self._items), "sha256": asked}

    def _read(self) -> list[Item]:
        rows, folder, said = self._rows()
        found, pictures, seen = [], [], set()
        for number, (line, row) in enumerate(rows, 1):
            where = f"{said}, line {line}" if folder else f"data, question {line}"
            item, names = _item(row, where, folder or Path(), number)
            if self.metric_name == "vqa" and len(item.answers) == 1 and item.answers != UNKNOWN:
                raise VTCError(
                    f"{where}: one answer, expected several for metric 'vqa', which counts the people "
                    "who agree; one answer never scores"
                )
            if item.id in seen:
                raise VTCError(f"{where}: the id {item.id!r} is that of another question")
            seen.add(item.id)
            found.append(item)
            pictures.append(names)
        if not found:
            raise VTCError(f"data: {said} has no question")
        answered = sum(item.answers != UNKNOWN for item in found)
        if 0 < answered < len(found):
            raise VTCError(
                f"data: {answered} of {len(found)} questions have answers, allowed are all or none"
            )
        groups = together(pictures)
        return [replace(i, cluster=group) for i, group in zip(found, groups, strict=True)]

    def _rows(self) -> tuple[list[tuple[int, Any]], Path | None, str]:
        """Rows with their numbers, the folder of the file they are from, and what to call it."""
        if not isinstance(self.data, (str, Path)):
            if not isinstance(self.data, Iterable):
                raise VTCError(
                    f"data: got {self.data!r}, allowed are a JSONL file and dictionaries"
                )
            return list(enumerate(self.data, 1)), None, "the list"
        path = Path(self.data).expanduser()
        try:
            # not `splitlines`, which cuts at separators that JSON has inside texts
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise VTCError(f"data: cannot read {str(path)!r}: {reason}") from error
        rows = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise VTCError(f"{path}, line {number}: not JSON: {error}") from None
        return rows, path.parent, str(path)


def _item(row: Any, where: str, folder: Path, number: int) -> tuple[Item, list[str]]:
    """A question, and a name for each of its pictures that is the same for the same picture."""
    if not isinstance(row, Mapping):
        raise VTCError(f"{where}: got {row!r}, expected keys with values")
    for key in row:
        if key not in KEYS:
            raise VTCError(
                f"{where}: unknown key {key!r}, allowed are {', '.join(KEYS)}{nearest(key, KEYS)}"
            )
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise VTCError(f"{where}: question is {question!r}, expected a text")
    images = row.get("images", [row["image"]] if row.get("image") is not None else None)
    if not isinstance(images, (list, tuple)) or not images or ("image" in row and "images" in row):
        raise VTCError(f"{where}: expected image, or images with at least one")
    if "answer" in row and "answers" in row:
        raise VTCError(f"{where}: answer and answers are both given, expected one of them")
    answers = row.get("answers", [row["answer"]] if row.get("answer") is not None else [])
    if isinstance(answers, str) or not isinstance(answers, (list, tuple)):
        raise VTCError(f"{where}: answers is {answers!r}, expected a list of texts")
    calls, names = [], []
    for image in images:
        if isinstance(image, (str, Path)):
            path = folder / Path(image).expanduser()
            if not path.is_file():
                raise VTCError(f"{where}: there is no image {str(path)!r}")
            calls.append(_opener(path))
            names.append(hashlib.sha256(path.read_bytes()).hexdigest())
        elif hasattr(image, "tobytes") and hasattr(image, "size"):
            calls.append(functools.partial(_given, image))
            names.append(_pixels(image))
        else:
            raise VTCError(f"{where}: got {type(image).__name__} as image, expected a path")
    said = tuple(str(answer) for answer in answers) or UNKNOWN
    return Item(str(row.get("id", number)), tuple(calls), question, said), names


@functools.cache
def _opener(path: Path) -> Callable[[], Image]:
    """One call a path, so that the runner opens a shared image once a batch."""
    return functools.partial(_open, path)


def _open(path: Path) -> Image:
    from vtc.rgb import load_image

    return load_image(path)


def _given(image: Image) -> Image:
    return image


def _pixels(image: Image) -> str:
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def together(pictures: Sequence[Sequence[str]]) -> list[str]:
    """A name of the cluster of each question: those that share a picture, or are linked by others that
    do, stand or fall together."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for names in pictures:
        for name in names[1:]:
            parent[root(name)] = root(names[0])
    return [root(names[0])[:16] for names in pictures]


@dataclass(frozen=True)
class ByImage:
    """Questions by image (or whatever stands or falls together).

    Attributes:
        items: the questions about each.
        typical: the median number of questions about one. An image with more counts as this many, so
            that no single one weighs more than a typical one.
        left_out: questions that cannot be read, with the reason.
    """

    items: dict[str, list[Item]]
    typical: int
    left_out: dict[str, str]

    @classmethod
    def of(cls, suite: Suite, limit: int | None = None) -> ByImage:
        """The questions of a suite; of items without a cluster the pixels tell.

        Raises:
            VTCError: none can be read.
        """
        found: dict[str, list[Item]] = defaultdict(list)
        left: dict[str, str] = {}
        for item in suite.first(limit):
            reason = item.error or ("" if item.answers else "the data has no answer")
            reason = reason or ("" if item.images else "it has no image")
            name = item.cluster
            if not reason and not name:
                try:
                    name = "-".join(_pixels(call()) for call in item.images)[:32]
                except Exception as error:  # whatever a decoder raises at a corrupt file
                    reason = f"image: {' '.join(str(error).split())}"
            if reason:
                left[item.id] = reason
            else:
                found[name].append(replace(item, cluster=name))
        if not found:
            reason = next(iter(left.values()), "there is none")
            raise VTCError(f"data: no question about an image can be read: {reason}")
        typical = int(statistics.median_high([len(items) for items in found.values()]))
        return cls(dict(found), typical, left)

    def weight(self, image: str) -> float:
        """What an image counts, in (0, 1]."""
        return min(1.0, len(self.items[image]) / self.typical)

    @property
    def answered(self) -> bool:
        """Whether right answers are known."""
        return all(i.answers != UNKNOWN for items in self.items.values() for i in items)
