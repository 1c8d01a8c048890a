"""DocVQA (Mathew et al. 2021): questions about scanned documents."""

from __future__ import annotations

from vtc.eval.scoring.anls import anls
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import WORD_OR_PHRASE, Row, TableSuite


class DocVQA(TableSuite):
    """ANLS; the kind is the first of a question's types."""

    name = "docvqa"
    metric = mean_metric = "anls"
    max_new_tokens = 32
    dataset = "lmms-lab/DocVQA"
    config = "DocVQA"
    default_split = "validation"
    columns = ("questionId", "docId", "question", "question_types", "answers")
    #: columns of the types of a question, and of what several questions are about
    kinds, document = "question_types", "docId"

    def read(self, row: Row, number: int) -> Item:
        return Item(
            id=str(row["questionId"]),
            images=(row["image"],),
            prompt=row["question"] + WORD_OR_PHRASE,
            answers=tuple(row["answers"] or ()),
            kind=(row[self.kinds] or [""])[0],
            cluster=str(row[self.document]),
        )

    def score(self, item: Item, prediction: str) -> float:
        return anls(prediction, item.answers)
