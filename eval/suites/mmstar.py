"""MMStar (Chen et al. 2024): multiple choice that cannot be answered without the image."""

from __future__ import annotations

from vtc.eval.scoring.choice import option_letter
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import LETTER, Row, TableSuite


class MMStar(TableSuite):
    """Share of right options, which the question's own text lists; kinds are the six capabilities."""

    name = "mmstar"
    dataset = "Lin-Chen/MMStar"
    default_split = "val"
    columns = ("index", "question", "answer", "category")

    def read(self, row: Row, number: int) -> Item:
        return Item(
            id=str(row["index"]),
            images=(row["image"],),
            prompt=row["question"].strip() + LETTER.rstrip("."),
            answers=(row["answer"].strip().upper(),) if row["answer"] else (),
            kind=row["category"] or "",
        )

    def score(self, item: Item, prediction: str) -> float:
        return float(option_letter(prediction, dict.fromkeys("ABCD", "")) == item.answers[0])
