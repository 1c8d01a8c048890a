"""TextVQA (Singh et al. 2019): questions about text in photographs."""

from __future__ import annotations

from vtc.eval.scoring.vqa import vqa_accuracy
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import WORD_OR_PHRASE, Row, TableSuite


class TextVQA(TableSuite):
    """VQA accuracy. The prompt has no OCR tokens."""

    name = "textvqa"
    dataset = "lmms-lab/textvqa"
    default_split = "validation"
    columns = ("question_id", "image_id", "question", "answers")

    def read(self, row: Row, number: int) -> Item:
        return Item(
            id=str(row["question_id"]),
            images=(row["image"],),
            prompt=row["question"].capitalize() + WORD_OR_PHRASE,
            answers=tuple(row["answers"] or ()),
            cluster=str(row["image_id"]),
        )

    def score(self, item: Item, prediction: str) -> float:
        return vqa_accuracy(prediction, item.answers, tokenized=True)
