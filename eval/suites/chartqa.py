"""ChartQA (Masry et al. 2022): questions about charts."""

from __future__ import annotations

from vtc.eval.scoring.relaxed import relaxed_accuracy
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import Row, TableSuite


class ChartQA(TableSuite):
    """Relaxed accuracy; kinds are who wrote the question, people or a machine."""

    name = "chartqa"
    metric = mean_metric = "relaxed_accuracy"
    dataset = "lmms-lab/ChartQA"
    default_split = "test"
    columns = ("type", "question", "answer")

    def read(self, row: Row, number: int) -> Item:
        return Item(
            id=str(number),
            images=(row["image"],),
            prompt=row["question"] + "\nAnswer the question with a single word.",
            answers=() if row["answer"] in (None, "") else (row["answer"],),
            kind=row["type"] or "",
        )

    def score(self, item: Item, prediction: str) -> float:
        return relaxed_accuracy(prediction, item.answers[0])
