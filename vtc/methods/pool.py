"""Pool: fewer tokens by averaging neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vtc.batch import ImageBatch
from vtc.functional.grids import even_bins
from vtc.functional.ragged import to_device, true_places
from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.selection import Selection


@register_method
@dataclass
class Pool(Method):
    """Averages the patches of each bin of an even grid; the budget exactly.

    Tiles share the budget as in `uniform`; the bins are disjoint, hold no padding and cover every
    patch once. A token's provenance and position are those of its bin's middle patch, its weight is
    the number of patches in it. Separators stay.
    """

    name: ClassVar[str] = "pool"
    shown: ClassVar[bool] = True

    def select(self, batch: ImageBatch) -> Selection:
        valid = batch.tables.valid
        shares = batch.shares(batch.available, batch.budgets)
        share, first = to_device(torch.stack([shares, shares.cumsum(0) - shares]), valid)
        bins, centre = even_bins(valid, batch.patch_grid, share, batch.hidden)
        number = (bins + first[:, None]).flatten()  # of the token each patch goes into

        pooled = [
            count if n else 0 for count, n in zip(batch.available, shares.tolist(), strict=True)
        ]
        source = true_places((valid & (share > 0)[:, None]).flatten(), sum(pooled))
        output = number[source]
        middle = true_places(centre.flatten(), sum(batch.budgets))
        place = torch.empty_like(middle)
        place.scatter_(0, number[middle], batch.tables.packed.flatten()[middle])
        size = torch.zeros(len(place), device=valid.device)
        size.index_add_(0, output, torch.ones_like(output, dtype=torch.float32))
        return batch.merge(
            place,
            output,
            source,
            1 / size[output],
            size,
            batch.budgets,
            batch.per_image(pooled),
        )
