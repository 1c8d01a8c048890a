"""Learned: coverage of what a model's own answers look at, as a scorer that was trained on them says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.batch import ImageBatch
from vtc.errors import VTCError
from vtc.methods._scorer import DemandScorer
from vtc.methods.coverage import Coverage
from vtc.registry import register_method


@register_method
@dataclass
class Learned(Coverage):
    """`coverage` with demands that a small trained scorer corrects.

    The scorer sees the features that the language model reads, all patches of an image at once, and the
    demand of `coverage`. It multiplies that demand by a factor for each patch. An untrained one
    multiplies by 1, so that the method is `coverage` to the bit.

    A scorer belongs to one model. `vtc train-scorer` makes one without labels: it learns where the
    answers of the uncompressed model look. A scorer for another model is an error.

    Tiles that have budgets of their own (`scope="tile"`, or more than 2,048 tokens of more than 4,096)
    are corrected alike: the scorer sees all of an image in any case.

    A method of this library; docs/own-methods.md has what was measured.

    Attributes:
        scorer: None. The folder that `vtc train-scorer` wrote, or a module that is called as
            `DemandScorer` is; None for what the model brings, a folder `scorer` beside its weights.
    """

    scorer: Any = None

    name: ClassVar[str] = "learned"
    beside: ClassVar[Mapping[str, str]] = {"scorer": "scorer"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.scorer, (str, Path)):
            self.scorer = DemandScorer.load(self.scorer)
        if self.scorer is not None and not isinstance(self.scorer, nn.Module):
            raise VTCError(
                f"scorer: got {type(self.scorer).__name__}, allowed are the folder that `vtc "
                "train-scorer` wrote, a module like DemandScorer, or None"
            )

    def check(self) -> None:
        if self.scorer is None:
            raise VTCError(
                "scorer: got None, and the model brings none; train one for this model with `vtc "
                "train-scorer --model MODEL --images FOLDER --output scorer` and give scorer='scorer'; "
                "'coverage' works without"
            )

    @property
    def made_for(self) -> Mapping[str, Any] | None:
        """What identifies the model that the scorer was trained on, None for any."""
        return getattr(self.scorer, "made_for", None)

    def weights(self) -> dict[str, nn.Module]:
        return {} if self.scorer is None else {"scorer": self.scorer}

    def demand(self, batch: ImageBatch) -> Tensor:
        # what the thumbnail is worth at this budget is another matter: the scorer sees attention alone
        seen, tables = self._attended(batch), batch.tables
        demand = self._weighed(batch, seen)
        weight = next(self.scorer.parameters(), None)
        if weight is not None and weight.device != demand.device:
            self.scorer.to(demand.device)
        thumbnail = tables.nth == 0
        if batch.images[0].tile_grid is None:
            thumbnail = torch.zeros_like(thumbnail)
        overview = thumbnail[:, None].expand_as(seen)
        rows = [batch.padded(batch.features, 0), batch.padded(seen, 0)]
        rows += [batch.padded(overview, False), batch.padded(tables.valid, False)]
        with torch.no_grad():
            factor = self.scorer(*(row.flatten(1, 2) for row in rows)).exp()
        return demand * batch.unpadded(factor)
