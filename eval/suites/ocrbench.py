"""OCRBench (Liu et al. 2023): a thousand questions about text in images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vtc.eval.scoring.contains import contains_answer
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import Row, TableSuite

if TYPE_CHECKING:
    from vtc.eval.common.records import Answer

FORMULAS = "HME100k"  # the dataset of handwritten formulas


class OCRBench(TableSuite):
    """Answers that contain the right text, in thousandths; kinds are the question types."""

    name = "ocrbench"
    metric = "score"
    points = ("score",)
    max_new_tokens = 128
    dataset = "echo840/OCRBench"
    default_split = "test"
    columns = ("dataset", "question", "question_type", "answer")

    def read(self, row: Row, number: int) -> Item:
        answer = row["answer"]
        return Item(
            id=str(number),
            images=(row["image"],),
            prompt=row["question"].strip(),
            answers=(answer,) if isinstance(answer, str) else tuple(answer or ()),
            kind=row["question_type"] or "",
            extra={"dataset": row["dataset"]},
        )

    def score(self, item: Item, prediction: str) -> float:
        return contains_answer(prediction, item.answers, formula=item.extra["dataset"] == FORMULAS)

    def summary(self, answers: Sequence[Answer]) -> dict[str, float]:
        """`score`: right answers in a thousand, which on the whole set is their number."""
        right = sum(answer.score or 0.0 for answer in answers) / max(len(answers), 1)
        return {"score": 1000 * right, "accuracy": right}
