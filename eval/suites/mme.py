"""MME (Fu et al. 2023): two yes-or-no questions an image, in fourteen subtasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vtc.eval.scoring.mme import mme_scores, yes_no_other
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import WORD_OR_PHRASE, Row, TableSuite

if TYPE_CHECKING:
    from vtc.eval.common.records import Answer


class MME(TableSuite):
    """The MME score with its perception and cognition parts; kinds are the subtasks."""

    name = "mme"
    metric = "score"
    points = ("score", "perception", "cognition")
    dataset = "lmms-lab/MME"
    default_split = "test"
    whole_clusters = True
    columns = ("question_id", "question", "answer", "category")

    def _read(self) -> Iterator[Item]:
        items = list(super()._read())
        # raises where the data is not of MME's form: before the model is asked, not after
        mme_scores((item.kind, item.cluster, 0.0) for item in items if not item.error)
        yield from items

    def read(self, row: Row, number: int) -> Item:
        question = row["question"].strip().replace(" Please answer yes or no.", "")
        return Item(
            id=f"{row['category']}/{row['question_id']}",
            images=(row["image"],),
            prompt=question + WORD_OR_PHRASE,
            answers=(row["answer"].lower().strip().replace(".", ""),) if row["answer"] else (),
            kind=row["category"],
            cluster=f"{row['category']}/{row['question_id']}",
        )

    def score(self, item: Item, prediction: str) -> float:
        """1 when this question is right."""
        return float(yes_no_other(prediction) == item.answers[0])

    def summary(self, answers: Sequence[Answer]) -> dict[str, float]:
        """As `mme_scores`; also `accuracy` over questions."""
        scores = mme_scores((a.kind, a.cluster, a.score or 0.0) for a in answers)
        right = sum(answer.score or 0.0 for answer in answers)
        return {**scores, "accuracy": right / len(answers) if answers else 0.0}
