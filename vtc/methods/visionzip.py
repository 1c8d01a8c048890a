"""VisionZip: what CLS attends to stays, the rest is merged into a few tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import torch

from vtc.batch import ImageBatch
from vtc.functional.ragged import to_device
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods import _fields
from vtc.methods._merging import merge_into, nearest, official_length
from vtc.methods.cls_guided import ClsGuided
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import SignalRequest, VisualTokens


@register_method
@dataclass
class VisionZip(ClsGuided):
    """Keeps the patches with the most CLS attention, and merges the others into evenly spaced ones.

    The merged tokens, called contextual, are every so many of the patches that attention leaves, in
    raster order; every other patch goes to the one with the likest key.

    Each tile has a share of the budget by its patches. The official code counts and keeps the CLS
    row too, which LLaVA was never trained with; here it is left out. It rebuilds crops without
    un-padding and newlines; here they stay.

    Paper: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models"
    (arXiv 2412.04467, CVPR 2025).
    Code: dvlab-research/VisionZip at 3151f6d (Apache-2.0); written from the maths.

    Attributes:
        contextual: 5 / 32. Share of a tile's tokens that are merged ones, rounded down, or a whole
            number of them in every tile [code: 10 of 64, 20 of 128 and 30 of 192 are this share].
        merge: "official". A merged token is its own patch plus the mean of what goes to it, about
            twice as long as a kept one [code], or the "mean" of all of them [ours].
        order: "raster". A merged token stands where its own patch is [ours], or "official": behind
            the kept ones, in images of a single tile [code].
    """

    contextual: float = 5 / 32
    merge: str = "official"
    order: str = "raster"

    name: ClassVar[str] = "visionzip"
    paper: ClassVar[str] = "arXiv 2412.04467"
    stage: ClassVar = "vision"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.contextual, Integral)
        _fields.number("contextual", self.contextual, 0, float("inf") if whole else 1)
        _fields.one_of("merge", self.merge, ("official", "mean"))
        _fields.one_of("order", self.order, ("raster", "official"))

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        return {**super().requests(has_cls), "key_mean": SignalRequest("key_mean", self.layer)}

    def kind(self, tokens: VisualTokens) -> tuple[Any, ...]:
        return (*super().kind(tokens), official_length(tokens, self.order))

    def merged(self, share: int) -> int:
        """Merged tokens among `share` tokens of a tile."""
        if isinstance(self.contextual, Integral):
            return min(int(self.contextual), share)
        return math.floor(self.contextual * share + 1e-9)

    def select(self, batch: ImageBatch) -> Selection:
        valid, patches = batch.tables.valid, batch.features.shape[1]
        shares = batch.shares(batch.available, batch.budgets).tolist()
        merged = [self.merged(share) for share in shares]
        left = [n - (t - c) for n, t, c in zip(batch.available, shares, merged, strict=True)]
        step = [max(1, rest // max(c, 1)) for rest, c in zip(left, merged, strict=True)]
        count, number, stride = to_device([shares, merged, step], valid).unsqueeze(-1)

        dominant = segmented_topk(self.attention(batch), (count - number).squeeze(1), valid)[1]
        rest = valid & ~dominant
        rank = rest.cumsum(1) - 1
        target = rest & (rank % stride == 0) & (rank < stride * number)
        keys = batch.signal("key_mean")[:, -patches:].float()  # drops CLS where there is one
        key = None
        if self.order == "official" and batch.tiles[0] == 1:
            behind = count - number + target.cumsum(1)
            key = torch.where(dominant, dominant.cumsum(1), behind) - 1
        return merge_into(
            batch,
            dominant | target,
            nearest(keys, target, merged),
            rest & ~target & (number > 0),
            [t + n - c if c else t for t, n, c in zip(shares, left, merged, strict=True)],
            "sum" if self.merge == "official" else "mean",
            key,
        )
