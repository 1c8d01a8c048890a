"""Uniform: every so many patches, wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtc.batch import ImageBatch
from vtc.functional.grids import even_bins
from vtc.functional.ragged import to_device
from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.selection import Selection


@register_method
@dataclass
class Uniform(Method):
    """Keeps an even spatial grid of patches in every tile; the budget exactly.

    Tiles share the budget by their patches that are not padding (largest remainders). Of each tile
    the middle patch of every bin of an even grid stays, see `functional.grids.even_bins`.
    """

    name: ClassVar[str] = "uniform"
    shown: ClassVar[bool] = True

    def select(self, batch: ImageBatch) -> Selection:
        valid = batch.tables.valid
        shares = batch.shares(batch.available, batch.budgets)
        _, centre = even_bins(valid, batch.patch_grid, to_device(shares, valid), batch.hidden)
        return batch.keep(centre, batch.budgets)
