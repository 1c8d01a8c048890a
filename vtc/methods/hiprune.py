"""HiPrune: objects from a middle layer, the whole picture from a deep one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.ragged import to_device
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods import _fields
from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import SignalRequest


@register_method
@dataclass
class HiPrune(Method):
    """Keeps what is looked at in a middle layer, with its neighbours, and in the last that is read.

    A share of each tile's tokens are anchors, the patches that receive the most attention in a middle
    layer; their four neighbours stay with them, and the patches that receive the most attention in
    the layer that the features come from fill up the share. No CLS is needed.

    The official code takes the places before and behind an anchor and a row above and below, cut to
    the tile, so that neighbours at an edge are patches of the opposite edge or the first or the last
    of all; and divides one number of tokens by the tiles of the whole batch. Here neighbours are
    neighbours, and tiles share the budget of their image by what they hold.

    Paper: Liu et al., "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in
    Vision-Language Models" (arXiv 2508.00553).
    Code: Danielement321/HiPrune at 6e83a12 (MIT); written from the maths.

    Attributes:
        alpha: 0.1. Share of a tile's tokens that anchors and their neighbours take, five tokens an
            anchor, rounded half to even [code].
        object_layer: 0.375. Encoder layer of the anchors, as a share of the depth: the ninth of
            CLIP's 24 [code]; the official setting for Qwen2.5-VL is 0.5.
        layer: "read". Encoder layer of the others: the one that the features come from [code].
        neighbours: "grid". The patches beside, above and below, where there are any [ours], or
            "official" [code], see above.
    """

    alpha: float = 0.1
    object_layer: int | float | str = 0.375
    layer: int | float | str = "read"
    neighbours: str = "grid"

    name: ClassVar[str] = "hiprune"
    paper: ClassVar[str] = "arXiv 2508.00553"

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.number("alpha", self.alpha, 0, 1)
        _fields.layer("object_layer", self.object_layer)
        _fields.layer("layer", self.layer)
        _fields.one_of("neighbours", self.neighbours, ("grid", "official"))

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        layers = {"object": self.object_layer, "deep": self.layer}
        return {name: SignalRequest("attention_received", at) for name, at in layers.items()}

    def select(self, batch: ImageBatch) -> Selection:
        valid = batch.tables.valid
        shares = batch.shares(batch.available, batch.budgets).tolist()
        anchors = [round(share * self.alpha / 5) for share in shares]
        share, number = to_device([shares, anchors], valid)
        anchor = segmented_topk(batch.signal("object"), number, valid)[1]
        around = beside(anchor, batch.patch_grid, self.neighbours) & valid
        # anchors and their neighbours come first, should the share be too small for both
        score = batch.signal("deep").float().masked_fill(around, torch.finfo(torch.float32).max)
        score = score.masked_fill(anchor, torch.inf)
        return batch.keep(segmented_topk(score, share, valid)[1], batch.budgets)


def beside(anchor: Tensor, grid: tuple[int, int], neighbours: str = "grid") -> Tensor:
    """Bool `[T, N]`: anchors and the patches beside, above and below them.

    Args:
        anchor: bool `[T, N]`, row-major.
        grid: `(rows, cols)` of a tile.
        neighbours: "grid", or "official": N places in a row, cut at both ends.
    """
    if neighbours == "official":
        line, out = anchor, anchor
        for step in (1, grid[1]):
            shifted = torch.nn.functional.pad(line, (step, step))
            before, behind = shifted[:, 2 * step :], shifted[:, : -2 * step]
            out = out | before | behind
            # what would be outside stands for the first and the last place
            out = out | torch.nn.functional.pad(
                line[:, :step].any(1, keepdim=True), (0, line.shape[1] - 1)
            )
            out = out | torch.nn.functional.pad(
                line[:, -step:].any(1, keepdim=True), (line.shape[1] - 1, 0)
            )
        return out
    line = torch.nn.functional.pad(anchor.unflatten(1, grid), (1, 1, 1, 1))
    across = line[:, 1:-1, :-2] | line[:, 1:-1, 2:]
    return (line[:, 1:-1, 1:-1] | across | line[:, :-2, 1:-1] | line[:, 2:, 1:-1]).flatten(1)
