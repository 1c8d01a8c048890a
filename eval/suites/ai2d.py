"""AI2D (Kembhavi et al. 2016): diagrams of school science, multiple choice."""

from __future__ import annotations

from vtc.eval.scoring.choice import option_letter
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import LETTER, Row, TableSuite, lettered, listed, right_letter


class AI2D(TableSuite):
    """Share of right options."""

    name = "ai2d"
    dataset = "lmms-lab/ai2d"
    default_split = "test"
    columns = ("question", "options", "answer")

    def read(self, row: Row, number: int) -> Item:
        options = lettered(row["options"])
        return Item(
            id=str(number),
            images=(row["image"],),
            prompt=f"{row['question']}\n{listed(options)}{LETTER}",
            answers=right_letter(options, row["answer"]),
            extra={"options": options},
        )

    def score(self, item: Item, prediction: str) -> float:
        return float(option_letter(prediction, item.extra["options"]) == item.answers[0])
