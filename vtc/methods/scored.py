"""`Scored`: methods that give every patch a score and keep the best."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vtc.batch import ImageBatch
from vtc.errors import VTCError
from vtc.functional.ragged import to_device
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods.base import Method
from vtc.selection import Selection


@dataclass
class Scored(Method):
    """Keeps the patches with the highest scores, the budget exactly, in the order they were packed.

    A method of this kind is its docstring, its fields and `score`. Of equal scores the patch that comes
    first stays; padding is never kept, whatever its score.
    """

    #: "image": the best of the whole image. "tile": tiles share the budget by their patches that are not
    #: padding (largest remainders), and each keeps its best
    scope: ClassVar[Literal["image", "tile"]] = "image"

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if cls.scope not in ("image", "tile"):
            raise VTCError(
                f"scope: {cls.__name__} has {cls.scope!r}, allowed are 'image' and 'tile'"
            )

    @abstractmethod
    def score(self, batch: ImageBatch) -> Tensor:
        """`[S, N]`, the score of every patch of all tiles; higher stays."""
        raise VTCError(f"method: {type(self).__name__} must define score")

    def select(self, batch: ImageBatch) -> Selection:
        scores = self.score(batch)
        if scores.shape != batch.tables.valid.shape:
            raise VTCError(
                f"method {self.name!r} gave scores of shape {tuple(scores.shape)}, expected "
                f"{tuple(batch.tables.valid.shape)}, one a patch"
            )
        return keep_best(batch, scores, self.scope)


def keep_best(batch: ImageBatch, scores: Tensor, scope: str = "image") -> Selection:
    """The patches with the highest of `scores` `[S, N]`, as many as each image's budget says."""
    valid = batch.tables.valid
    if scope == "tile":
        shares = batch.shares(batch.available, batch.budgets)
        return batch.keep(
            segmented_topk(scores, to_device(shares, scores), valid)[1], batch.budgets
        )
    rows, real = batch.padded(scores, 0).flatten(1), batch.padded(valid, False).flatten(1)
    keep = segmented_topk(rows, to_device(batch.budgets, rows), real)[1]
    return batch.keep(batch.unpadded(keep), batch.budgets)
