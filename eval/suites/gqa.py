"""GQA (Hudson & Manning 2019): compositional questions about photographs from a table of their own."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NoReturn

from vtc.errors import VTCError
from vtc.eval.scoring.exact import exact_match
from vtc.eval.suites.base import Item
from vtc.eval.suites.table import WORD_OR_PHRASE, Row, TableSuite

IMAGES = "testdev_balanced_images"


class GQA(TableSuite):
    """Exact match on the balanced testdev questions; kinds are the structural types."""

    name = "gqa"
    dataset = "lmms-lab/GQA"
    config = "testdev_balanced_instructions"
    default_split = "testdev"
    columns = ("id", "imageId", "question", "answer", "types")

    def rows(self) -> Iterator[Row]:
        images = {row["id"]: row["image"] for row in self.table(IMAGES, ("id",))}
        for row in self.table(self.config, self.columns, image=""):
            missing = functools.partial(_missing, row["imageId"])
            yield {**row, "image": images.get(row["imageId"], missing)}

    def read(self, row: Row, number: int) -> Item:
        return Item(
            id=str(row["id"]),
            images=(row["image"],),
            prompt=row["question"] + WORD_OR_PHRASE,
            answers=(row["answer"],) if row["answer"] else (),
            kind=row["types"]["structural"] or "",
            cluster=str(row["imageId"]),
        )

    def score(self, item: Item, prediction: str) -> float:
        return exact_match(prediction, item.answers[0])


def _missing(name: str) -> NoReturn:
    raise VTCError(f"the table of images has no {name!r}")
