"""InfographicVQA (Mathew et al. 2022): questions about infographics."""

from __future__ import annotations

from vtc.eval.scoring.anls import anls
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import WORD_OR_PHRASE, Row, TableSuite


class InfoVQA(TableSuite):
    """ANLS; the kind is the first of a question's answer types."""

    name = "infovqa"
    metric = mean_metric = "anls"
    max_new_tokens = 32
    dataset = "lmms-lab/DocVQA"
    config = "InfographicVQA"
    default_split = "validation"
    columns = ("questionId", "image_url", "question", "answer_type", "answers")

    def read(self, row: Row, number: int) -> Item:
        return Item(
            id=str(row["questionId"]),
            images=(row["image"],),
            prompt=row["question"] + WORD_OR_PHRASE,
            answers=tuple(row["answers"] or ()),
            kind=(row["answer_type"] or [""])[0],
            cluster=str(row["image_url"]),
        )

    def score(self, item: Item, prediction: str) -> float:
        return anls(prediction, item.answers)
