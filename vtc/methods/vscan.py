"""VScan at the boundary: half from windows, half from the whole picture, the rest averaged in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.ragged import to_device
from vtc.functional.windows import rank_within, windows
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods import _fields
from vtc.methods._merging import merge_into, nearest
from vtc.methods.cls_guided import ClsGuided, attention_request
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import SignalRequest


@register_method
@dataclass
class VScan(ClsGuided):
    """Keeps patches by shallow attention, spread over windows, then by deep attention; merges the rest.

    Half of a tile's tokens are the most attended of an early layer, no window of the tile getting more
    than its share; the others are the most attended of the layer that is read. Every patch that is
    dropped is averaged into the kept one of the likest features.

    This is the first half of the method. The second prunes again inside the language model, and the
    published numbers are of both: their "64" is 96 here and 32 later.

    Tiles share the budget by their patches. The official code keeps fewer where half of a tile's
    tokens is no multiple of its windows; here the deep layer fills up.

    Paper: Zhang et al., "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language
    Models" (arXiv 2505.22654, TMLR 2026).
    Code: Tencent/SelfEvolvingAgent at a82450e, folder VScan (MIT); written from the maths.

    Attributes:
        local_layer: 0.25. Encoder layer of the windows, as a share of the depth: the sixth of CLIP's
            24 and the eighth of Qwen2.5-VL's 32 [code].
        window: 4. Patches along a window's side [code for Qwen2.5-VL; for LLaVA's 24 x 24 it is 6].
            Grids need not divide: the last windows are larger.
        quota: "most". The best of the tile, of no window more than half the tokens over the windows,
            rounded up [code for Qwen2.5-VL], or "each": that number of every window, rounded down
            [code for LLaVA].
    """

    local_layer: int | float | str = 0.25
    window: int = 4
    quota: str = "most"

    name: ClassVar[str] = "vscan"
    paper: ClassVar[str] = "arXiv 2505.22654"

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.layer("local_layer", self.local_layer)
        _fields.whole("window", self.window, 1)
        _fields.one_of("quota", self.quota, ("most", "each"))

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        local = attention_request(self, has_cls, self.local_layer)
        return {"local": local, **super().requests(has_cls)}

    def local(self, batch: ImageBatch, shares: list[int]) -> Tensor:
        """Bool `[S, N]`: the patches that windows pick of tiles that keep `shares`."""
        valid, scores = batch.tables.valid, batch.signal("local").float()
        window, number = windows(batch.patch_grid, self.window, valid.device)
        half = [share // 2 for share in shares]
        if self.quota == "each":
            limit = [count // number for count in half]
            half = [count * number for count in limit]
        else:
            limit = [-(-count // number) for count in half]
        most, count = to_device([limit, half], scores)
        allowed = valid & (rank_within(scores, window, number, valid) < most[:, None])
        return segmented_topk(scores, count, allowed)[1]

    def select(self, batch: ImageBatch) -> Selection:
        valid = batch.tables.valid
        shares = batch.shares(batch.available, batch.budgets).tolist()
        local = self.local(batch, shares)
        score = self.attention(batch).masked_fill(local, torch.inf)
        keep = segmented_topk(score, to_device(shares, score), valid)[1]
        there = [bool(share) for share in shares]
        return merge_into(
            batch,
            keep,
            nearest(batch.features.float(), keep, shares),
            valid & ~keep & to_device(there, score)[:, None],
            [n * some for n, some in zip(batch.available, there, strict=True)],
            "mean",
        )
