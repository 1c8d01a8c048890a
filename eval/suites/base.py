"""What a benchmark is to the runner: items to ask about, a score per answer, figures over all."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from PIL.Image import Image

    from vtc.eval.common.records import Answer


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: unique in the suite and the same in every run.
        images: calls that open an image each; opened late, so that a corrupt file costs one item.
            Items about the same image should share the call: the runner then opens it once a batch.
        prompt: the text of the user's turn, without image placeholders.
        answers: accepted answers, in the form that the suite's scorer reads. With none the row is
            marked as failed and the model is not asked.
        kind: type of the question, for figures by type; "" when there are none.
        cluster: items with the same cluster stand or fall together (questions about one image, the
            turned copies of one multiple-choice question): the unit that statistics draw. "" where
            the data has no name for the image: the runner takes a hash of its pixels.
        extra: what the scorer needs besides.
        error: why the data of this question cannot be read; the row is marked as failed with it.
    """

    id: str
    images: tuple[Callable[[], Image], ...]
    prompt: str
    answers: tuple[str, ...]
    kind: str = ""
    cluster: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


def digest(values: Iterable[object]) -> str:
    """SHA-256 over the representations of values, one behind the other, in hexadecimal."""
    found = hashlib.sha256()
    for value in values:
        found.update(repr(value).encode())
    return found.hexdigest()


@dataclass
class Suite(ABC):
    """A benchmark: a dataclass whose fields are its options (`--data FOLDER` fills `data`,
    `--suite-option NAME.FIELD=VALUE` any). Making one is cheap; `items` reads the data.

    Attributes:
        name: as given to `--suite`.
        metric: name of the headline figure, a key of `summary`.
        mean_metric: name in `summary` of the mean of `score`, what intervals and tests are about;
            another one than `metric` where the headline is no such mean.
        max_new_tokens: how long an answer may get.
        points: names of figures in points, those of their kinds (`NAME/KIND`) too; all others are
            shares from 0 to 1.
        whole_clusters: the headline counts whole clusters, so that a limit must not cut one.
    """

    name: ClassVar[str]
    metric: ClassVar[str] = "accuracy"
    mean_metric: ClassVar[str] = "accuracy"
    max_new_tokens: ClassVar[int] = 16
    points: ClassVar[tuple[str, ...]] = ()
    whole_clusters: ClassVar[bool] = False

    @abstractmethod
    def items(self) -> Sequence[Item]:
        """All questions, in a fixed order, those about one image side by side.

        Raises:
            VTCError: no such data, or a column is missing.
        """

    def first(self, limit: int | None) -> Sequence[Item]:
        """At most `limit` questions from the start (None: all). With `whole_clusters` those of the
        first clusters that fit whole, at least one cluster."""
        items = self.items()
        if limit is None or not self.whole_clusters:
            return items[:limit]
        clusters: set[str] = set()
        for cluster, size in Counter(item.cluster or item.id for item in items).items():
            limit -= size
            if limit < 0 and clusters:
                break
            clusters.add(cluster)
        return [item for item in items if (item.cluster or item.id) in clusters]

    @abstractmethod
    def score(self, item: Item, prediction: str) -> float:
        """How right an answer is, from 0 to 1."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What identifies the data (source, split, seed, count, fingerprint): part of a run's
        manifest; runs whose facts differ are not compared. Of local data a fingerprint, no path."""

    def summary(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Figures over scored answers, the headline under `metric`. Failed rows are not among
        `answers`; the runner counts them apart."""
        return (
            {self.mean_metric: sum(a.score or 0.0 for a in answers) / len(answers)}
            if answers
            else {}
        )
