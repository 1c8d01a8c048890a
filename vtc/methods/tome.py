"""ToMe at the boundary: the likest tokens are merged, in pairs or into a grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.batch_tables import batch_tables
from vtc.errors import VTCError
from vtc.functional.bipartite import halving, merge_pairs
from vtc.functional.ragged import to_device
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods import _fields
from vtc.methods._merging import merge_into, nearest
from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import SignalRequest


@register_method
@dataclass
class ToMe(Method):
    """Averages the tokens that are likest, each into one of a second set, until the budget is met.

    ToMe takes every other token as the second set; of the first set those with the likest partner are
    merged into it, at most half of all in a round, and rounds follow until the budget is met. tomesd
    has one round: the second set is a patch of every cell of an even grid, so that a regular grid is
    left. Tiles share the budget by their patches.

    Made for every block of a vision transformer, it is used once here, behind the tower: attention
    weighted by sizes is lost, and between rounds the metric is merged as the tokens are.

    Paper: Bolya et al., "Token Merging: Your ViT But Faster" (arXiv 2210.09461, ICLR 2023); Bolya and
    Hoffman, "Token Merging for Fast Stable Diffusion" (arXiv 2303.17604).
    Code: facebookresearch/ToMe at af95e4b (CC BY-NC 4.0: nothing of it is used, all is written from the
    maths); dbolya/tomesd at 27a14a3 (MIT).

    Attributes:
        variant: "tome", or "tomesd" for the grid [both papers].
        metric: "features". What likeness is measured on: the tokens [ours; tomesd's code], or the mean
            over heads of the "keys" of the layer that is read [ToMe's code: of the same block].
        cell: 2. Side of tomesd's cells, or their rows and columns; the top left patch of each is in
            the second set [code, its way without random numbers]. Doubled for tiles with fewer tokens
            than cells [ours].
    """

    variant: str = "tome"
    metric: str = "features"
    cell: int | tuple[int, int] = 2

    name: ClassVar[str] = "tome"
    paper: ClassVar[str] = "arXiv 2210.09461"

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.one_of("variant", self.variant, ("tome", "tomesd"))
        _fields.one_of("metric", self.metric, ("features", "keys"))
        for side in self.cell if isinstance(self.cell, (tuple, list)) else (self.cell,):
            _fields.whole("cell", side, 1)
        if isinstance(self.cell, (tuple, list)) and len(self.cell) != 2:
            raise VTCError(f"cell: got {self.cell!r}, allowed are one number and two")

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        return {"key_mean": SignalRequest("key_mean", "read")} if self.metric == "keys" else {}

    def select(self, batch: ImageBatch) -> Selection:
        valid, metric = batch.tables.valid, batch.features
        if self.metric == "keys":
            metric = batch.signal("key_mean")[:, -valid.shape[1] :]  # drops CLS where there is one
        shares = batch.shares(batch.available, batch.budgets).tolist()
        there = [bool(share) for share in shares]
        by = self._by_pairs if self.variant == "tome" else self._by_grid
        merged, owner = by(batch, metric.float(), shares)
        own = valid & to_device(there, valid)[:, None]
        counts = [n * some for n, some in zip(batch.available, there, strict=True)]
        return merge_into(batch, own & ~merged, owner, own & merged, counts, "mean")

    def _by_pairs(
        self, batch: ImageBatch, metric: Tensor, shares: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Bool `[S, N]`, patches that are merged into others, and int64 `[S, N]`, into which."""
        valid, available = batch.tables.valid, batch.available
        rounds = [halving(n, max(share, 1)) for n, share in zip(available, shares, strict=True)]
        place, main = merge_pairs(metric, valid, available, rounds)
        owner = main.gather(1, place.clamp(max=valid.shape[1] - 1))
        return owner != torch.arange(valid.shape[1], device=owner.device), owner

    def _by_grid(
        self, batch: ImageBatch, metric: Tensor, shares: list[int]
    ) -> tuple[Tensor, Tensor]:
        """The same with one destination a cell."""
        valid, grid = batch.tables.valid, batch.patch_grid
        host = batch_tables(batch.shapes, torch.device("cpu")).valid.unflatten(1, grid)
        extents = host.any(2).sum(1).tolist(), host.any(1).sum(1).tolist()
        sides = (self.cell,) * 2 if isinstance(self.cell, int) else tuple(self.cell)
        cells = [
            cell_of(*extent, max(share, 1), sides)
            for *extent, share in zip(*extents, shares, strict=True)
        ]
        number = [
            (rows // cell[0]) * (cols // cell[1])
            for rows, cols, cell in zip(*extents, cells, strict=True)
        ]
        down, across = to_device(cells, valid).unbind(1)
        to = destinations(valid, grid, down, across)
        owner = nearest(metric, to, number)
        unit = torch.nn.functional.normalize(metric, dim=-1)
        like = (unit * unit.gather(1, owner[..., None].expand_as(unit))).sum(-1)
        gone = [n - max(share, 1) for n, share in zip(batch.available, shares, strict=True)]
        return segmented_topk(like, to_device(gone, like).clamp(min=0), valid & ~to)[1], owner


@lru_cache(maxsize=4096)
def cell_of(rows: int, cols: int, tokens: int, cell: tuple[int, int]) -> tuple[int, int]:
    """The cell for a grid: within it, and doubled until there are no more than `tokens` whole cells."""
    down, across = max(min(cell[0], rows), 1), max(min(cell[1], cols), 1)
    while (rows // down) * (cols // across) > tokens:
        down, across = min(2 * down, rows), min(2 * across, cols)
    return down, across


def destinations(valid: Tensor, grid: tuple[int, int], down: Tensor, across: Tensor) -> Tensor:
    """Bool `[S, N]`: the top left patch of each whole cell of the rows and columns that hold patches.

    Args:
        valid: bool `[S, N]`.
        grid: `(rows, cols)` of a tile.
        down, across: int64 `[S]`, rows and columns of each tile's cells.
    """
    tile = valid.unflatten(1, grid)
    lines = []
    for used, step in ((tile.any(2), down[:, None]), (tile.any(1), across[:, None])):
        rank, extent = used.cumsum(1) - 1, used.sum(1, keepdim=True)
        lines.append(used & (rank % step == 0) & (rank // step < extent // step))
    out = (lines[0][:, :, None] & lines[1][:, None]).flatten(1) & valid
    # where a mask hides all of these, the first patch there is
    first = valid & (valid.cumsum(1) == 1)
    return out | (first & ~out.any(1, keepdim=True))
