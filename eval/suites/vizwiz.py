"""VizWiz-VQA (Gurari et al. 2018): questions that blind people asked about their photographs."""

from __future__ import annotations

from vtc.eval.scoring.vqa import vqa_accuracy
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import WORD_OR_PHRASE, Row, TableSuite

UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


class VizWiz(TableSuite):
    """VQA accuracy."""

    name = "vizwiz"
    dataset = "lmms-lab/VizWiz-VQA"
    default_split = "val"
    columns = ("question_id", "question", "answers")

    def read(self, row: Row, number: int) -> Item:
        return Item(
            id=str(row["question_id"]),
            images=(row["image"],),
            prompt=row["question"].capitalize() + UNANSWERABLE + WORD_OR_PHRASE,
            answers=tuple(row["answers"] or ()),
        )

    def score(self, item: Item, prediction: str) -> float:
        return vqa_accuracy(prediction, item.answers, tokenized=True)
