"""VQAv2 (Goyal et al. 2017): short answers to questions about COCO images."""

from __future__ import annotations

from vtc.eval.scoring.vqa import vqa_accuracy
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import WORD_OR_PHRASE, Row, TableSuite


class VQAv2(TableSuite):
    """VQA accuracy; kinds are the answer types yes/no, number and other."""

    name = "vqav2"
    dataset = "lmms-lab/VQAv2"
    default_split = "validation"
    columns = ("question_id", "image_id", "question", "answer_type", "answers")

    def read(self, row: Row, number: int) -> Item:
        return Item(
            id=str(row["question_id"]),
            images=(row["image"],),
            prompt=row["question"] + WORD_OR_PHRASE,
            answers=tuple(person["answer"] for person in row["answers"] or ()),
            kind=row["answer_type"] or "",
            cluster=str(row["image_id"]),
        )

    def score(self, item: Item, prediction: str) -> float:
        return vqa_accuracy(prediction, item.answers)
