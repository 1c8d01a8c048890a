"""PruneSID: groups by principal directions, and no two patches alike in a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.prunesid import alike, deal, principal_groups, unsuppressed
from vtc.functional.ragged import to_device, to_host
from vtc.functional.windows import rank_within
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods.cls_guided import ClsGuided
from vtc.registry import register_method
from vtc.selection import Selection


@register_method
@dataclass
class PruneSID(ClsGuided):
    """Keeps some patches of every group of the picture, those of the most CLS attention unless alike.

    Groups are the principal directions of a tile's patches, a fourth as many as tokens. In a group the
    most attended patch suppresses those that are likest to it, then the next one does. Groups share the
    tokens by how many patches are left of them.

    Tiles share the budget by their patches. The published number counts the CLS row, which is kept too;
    here it is left out. The published decomposition is randomised, and differs from run to run where
    directions weigh alike; here it is exact. The ratio that adapts to the picture is in the paper alone.
    Tokens stand in raster order, where the code has them group by group.

    Costs an exact decomposition of every tile, `[patches, patches]` in float64: made for tiles of some
    hundred patches, not for images of thousands in one.

    Paper: "Prune Redundancy, Preserve Essence: Vision Token Compression in VLMs via Synergistic
    Importance-Diversity" (arXiv 2603.09480, ICLR 2026).
    Code: ZhengyaoFang/PruneSID at 4ef17d9 (README: Apache-2.0, no licence file); written from the maths.
    """

    name: ClassVar[str] = "prunesid"
    paper: ClassVar[str] = "arXiv 2603.09480"
    stage: ClassVar = "vision"

    def plan(self, batch: ImageBatch, shares: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each patch its group and its rank in it, int64 `[S, N]`; of each group the patches that
        suppress others and the tokens it has, int64 `[S, most]`."""
        valid, x = batch.tables.valid, batch.features
        directions = min(x.shape[1:])
        groups = [min(max((share + 1) // 4, 1), directions) for share in shares]
        count, tokens = to_device([groups, [share + 1 for share in shares]], x)
        attention = self.attention(batch)
        group = principal_groups(x, valid, count)
        order = segmented_topk(attention, tokens, valid)[0]
        kept = unsuppressed(alike(x, valid, tokens / 32), group, order, valid)

        most = max(groups)
        numbers = torch.zeros(2, len(valid), most, dtype=torch.int64, device=valid.device)
        numbers.scatter_add_(2, group.expand(2, -1, -1), torch.stack([valid, kept]).long())
        sizes, left = (part.tolist() for part in to_host(numbers))
        dealt = [
            deal(size, some, share + 1) if share else [0] * most
            for size, some, share in zip(sizes, left, shares, strict=True)
        ]
        quota = to_device(dealt, group)
        rank = rank_within(attention, group + most * ~kept, 2 * most, valid)
        rank = rank + (numbers[1].gather(1, group) * ~kept)
        return group, rank, numbers[1], quota

    def select(self, batch: ImageBatch) -> Selection:
        shares = batch.shares(batch.available, batch.budgets).tolist()
        group, rank, _, quota = self.plan(batch, shares)
        keep = batch.tables.valid & (rank < quota.gather(1, group))
        return batch.keep(keep, batch.budgets)
