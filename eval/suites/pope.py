"""POPE (Li et al. 2023): is an object in the image, or hallucinated?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vtc.eval.scoring.yes_no import binary_figures, says_yes
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import WORD_OR_PHRASE, Row, TableSuite

if TYPE_CHECKING:
    from vtc.eval.common.records import Answer


class POPE(TableSuite):
    """Accuracy, precision, recall, F1 and yes-ratio, overall and for each way that absent objects
    were chosen (random, popular, adversarial)."""

    name = "pope"
    dataset = "lmms-lab/POPE"
    default_split = "test"
    columns = ("question_id", "question", "answer", "image_source", "category")

    def read(self, row: Row, number: int) -> Item:
        return Item(
            id=f"{row['category']}-{row['question_id']}",
            images=(row["image"],),
            prompt=row["question"].strip() + WORD_OR_PHRASE,
            answers=(row["answer"].strip().lower(),) if row["answer"] else (),
            kind=row["category"],
            cluster=str(row["image_source"]),
        )

    def score(self, item: Item, prediction: str) -> float:
        return float(says_yes(prediction) == (item.answers[0] == "yes"))

    def summary(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Figures over all questions, and `FIGURE/CATEGORY`."""

        def figures(chosen: Sequence[Answer]) -> dict[str, float]:
            return binary_figures(
                (says_yes(a.prediction or ""), a.answers[0] == "yes") for a in chosen
            )

        out = figures(answers)
        for kind in dict.fromkeys(answer.kind for answer in answers):
            members = [answer for answer in answers if answer.kind == kind]
            out |= {f"{name}/{kind}": value for name, value in figures(members).items()}
        return out
