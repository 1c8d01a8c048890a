"""MMBench (Liu et al. 2023): multiple choice, each question asked with its options in every turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vtc.eval.scoring.choice import option_letter
from vtc.eval.scoring.circular import circular_accuracy
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import LETTER, Row, TableSuite, listed

if TYPE_CHECKING:
    from vtc.eval.common.records import Answer

TURN = 1_000_000  # turned copies of a question have its index plus a multiple of this


class MMBench(TableSuite):
    """Circular accuracy: a question must be right in every turn. Kinds are the categories."""

    name = "mmbench"
    mean_metric = "vanilla_accuracy"
    dataset = "lmms-lab/MMBench"
    config = "en"
    default_split = "dev"
    whole_clusters = True
    columns = ("index", "question", "hint", "answer", "A", "B", "C", "D", "category")

    def _read(self) -> Iterator[Item]:
        items = list(super()._read())
        turns = Counter(item.cluster for item in items)
        for item in items:
            yield replace(item, extra={**item.extra, "turns": turns[item.cluster]})

    def read(self, row: Row, number: int) -> Item:
        options = {letter: row[letter] for letter in "ABCD" if row[letter] not in (None, "", "nan")}
        hint = f"{row['hint']} " if row["hint"] not in (None, "", "nan") else ""
        prompt = f"{hint}{row['question']} There are several options:\n{listed(options)}\n{LETTER}"
        return Item(
            id=str(row["index"]),
            images=(row["image"],),
            prompt=prompt,
            answers=(row["answer"],) if row["answer"] not in (None, "", "nan") else (),
            kind=row["category"] or "",
            cluster=str(int(row["index"]) % TURN),
            extra={"options": options},
        )

    def score(self, item: Item, prediction: str) -> float:
        """1 when this turn is right."""
        return float(option_letter(prediction, item.extra["options"]) == item.answers[0])

    def summary(self, answers: Sequence[Answer]) -> dict[str, float]:
        """As `circular_accuracy`."""
        return circular_accuracy((a.cluster, a.extra["turns"], a.score or 0.0) for a in answers)
