"""ScienceQA-IMG (Lu et al. 2022): school science with a diagram, multiple choice."""

from __future__ import annotations

from vtc.eval.scoring.choice import option_letter
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import LETTER, Row, TableSuite, lettered, listed, right_letter


class ScienceQA(TableSuite):
    """Share of right options; kinds are the subjects."""

    name = "scienceqa"
    dataset = "lmms-lab/ScienceQA"
    config = "ScienceQA-IMG"
    default_split = "test"
    columns = ("question", "choices", "answer", "hint", "subject")

    def read(self, row: Row, number: int) -> Item:
        options = lettered(row["choices"])
        hint = f"Context: {row['hint']}\n" if row["hint"] else ""
        return Item(
            id=str(number),
            images=(row["image"],),
            prompt=f"{hint}{row['question']}\n{listed(options)}{LETTER}",
            answers=right_letter(options, row["answer"]),
            kind=row["subject"] or "",
            extra={"options": options},
        )

    def score(self, item: Item, prediction: str) -> float:
        return float(option_letter(prediction, item.extra["options"]) == item.answers[0])
