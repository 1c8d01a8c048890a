"""FastVID: segments of like frames; salient tokens stay, the others are gathered by density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.density_peaks import distances, peak_scores
from vtc.functional.fastvid import (
    Plan,
    anchor_frames,
    likeness_before,
    nearest_anchors,
    plan,
)
from vtc.functional.ragged import to_device, to_host, true_places
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods import _fields
from vtc.methods.compares_frames import ComparesFrames
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import SignalRequest


@register_method
@dataclass
class FastVID(ComparesFrames):
    """Cuts a clip into segments of like frames. Of each frame the tokens with the most attention stay;
    the others of a segment are merged into anchors, density peaks of every p-th of its frames.

    Every frame gets the same share. Each token that is not salient is merged into its most similar
    anchor of every anchor frame of its segment; an anchor is
    `w * anchor + (1 - w) * mean(members)` with `w = max(1 / (members + 1), beta)`, itself among them.
    Positions stay.

    Attention and vector of a frame are officially those of SigLIP's pooling head, which models of
    transformers leave out: by default the attention that a token receives and the mean of the frame's
    tokens take their place [ours]. An image is a segment of one frame, each tile of one with crops too.

    Officially the shares of frames and anchor frames are rounded down, and what finds no room is lost.
    By default the budget is met. Ties in density go to the first token instead of to random noise.

    Paper: Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models"
    (NeurIPS 2025, arXiv 2503.11187). Code: LunarShen/FastVID@a40a109 (MIT).

    Attributes:
        c: 8. A clip is cut at the c - 1 places where neighbours are least alike [code].
        tau: 0.9. And wherever their cosine is below [code].
        d: 0.4. Share of a frame's tokens that goes to anchors [code].
        p: 4. One anchor frame in so many, counted from a segment's end; with 1 tokens are merged inside
            their frame alone [code].
        beta: 0.6. Least weight of an anchor's own features [code].
        neighbours: 4. Of a token, itself among them, for its density [code].
        guide: "received". Attention received and mean features [ours], or "pool": the pooling head's
            attention and output [code].
        count: "exact". The budget exactly [ours], or "official": rounded down [code].
    """

    c: int = 8
    tau: float = 0.9
    d: float = 0.4
    p: int = 4
    beta: float = 0.6
    neighbours: int = 4
    guide: str = "received"
    count: str = "exact"

    name: ClassVar[str] = "fastvid"
    paper: ClassVar[str] = "arXiv 2503.11187"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("c", "p", "neighbours"):
            _fields.whole(field, getattr(self, field), 1)
        _fields.number("tau", self.tau, -1, 1)
        _fields.number("d", self.d, 0, 1)
        _fields.number("beta", self.beta, 0, 1)
        _fields.one_of("guide", self.guide, ("received", "pool"))
        _fields.one_of("count", self.count, ("exact", "official"))

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.count == "exact"

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        pool = ("pool_attention", "pool_output")
        kinds = pool if self.guide == "pool" else ("attention_received",)
        return {kind: SignalRequest(kind, "read") for kind in kinds}

    def begins(self, batch: ImageBatch) -> np.ndarray:
        """Bool `[S]`: frames that a segment begins with."""
        tables = batch.tables
        if batch.images[0].tile_grid is not None or self.p == 1:
            return np.ones(sum(batch.tiles), dtype=bool)
        if self.guide == "pool":
            frames = batch.signal("pool_output")
        else:
            real = tables.valid[..., None]
            frames = batch.features.detach().float().masked_fill(~real, 0).sum(1)
        follows = tables.nth > 0
        alike = likeness_before(frames, follows)
        most = to_device([min(self.c, n) - 1 for n in batch.tiles], alike)
        _, cut = segmented_topk(-batch.padded(alike, 0), most, batch.padded(follows, False))
        cut = cut[tables.image, tables.nth] | (alike < self.tau) | ~follows
        return to_host(cut).numpy()

    def _plan(self, batch: ImageBatch) -> Plan:
        if self.exact:
            kept = batch.shares(batch.available, batch.budgets).numpy()
        else:
            ratio = [b / s.patches for b, s in zip(batch.budgets, batch.shapes, strict=True)]
            if self.tokens is None:
                ratio = [m.ratio for m in batch.methods]
            there = np.array(batch.available)
            kept = np.floor(there * np.repeat(ratio, batch.tiles)).astype(np.int64)
            kept = np.minimum(np.maximum(kept, 1), there)
        return plan(self.begins(batch), kept, batch.available, self.d, self.p, self.exact)

    def select(self, batch: ImageBatch) -> Selection:
        tables, own = batch.tables, self._plan(batch)
        attention = batch.signal("pool_attention" if self.guide == "pool" else "attention_received")
        counts = torch.from_numpy(np.stack([own.salient, own.anchors, own.segment]))
        salient, anchors, segment = to_device(counts, attention)
        _, stays = segmented_topk(attention, salient, tables.valid)
        rest = tables.valid & ~stays
        peaks = peak_scores(distances(batch.features, rest), rest, self.neighbours)
        _, anchor = segmented_topk(peaks, anchors, rest)
        source, target = self._merges(batch, own, segment, rest, anchor)

        flat = anchor.flatten()
        members = flat.float().index_add(0, target, torch.ones_like(target, dtype=torch.float32))
        weight = (1 / (members + 1)).clamp(min=self.beta)
        share = (1 - weight) / members.clamp(min=1)
        own_weight = torch.where(flat, weight + share, 1)
        keep = stays.flatten() | flat
        kept = true_places(keep, int(own.salient.sum() + own.anchors.sum()))
        return batch.merge(
            tables.packed.flatten()[kept],
            torch.cat([torch.arange(len(kept), device=kept.device), (keep.cumsum(0) - 1)[target]]),
            torch.cat([kept, source]),
            torch.cat([own_weight[kept], share[target]]),
            torch.where(flat, members, 1)[kept],
            batch.per_image((own.salient + own.anchors).tolist()),
            batch.per_image((own.salient + own.merges).tolist()),
        )

    def _merges(
        self, batch: ImageBatch, own: Plan, segment: Tensor, rest: Tensor, anchor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Token and anchor of each merge, as `frame * N + patch`; an anchor's with itself left out."""
        features = batch.features.detach()
        alone = batch.images[0].tile_grid is not None or self.p == 1  # frames are rows, else clips

        def rows(values: Tensor) -> Tensor:
            return values[:, None] if alone else batch.padded(values, 0)

        nth = np.arange(len(batch.tiles))
        row = np.arange(len(own.segment)) if alone else np.repeat(nth, batch.tiles)
        frames = to_device(torch.from_numpy(anchor_frames(own.anchors, row)), segment)
        index = torch.arange(rest.numel(), device=rest.device).view(rest.shape)
        place, seen = rows(index).flatten(1), rows(features).flatten(1, 2)
        most = max(int(own.anchors.max()), 1)
        best, there = nearest_anchors(features, place, seen, anchor, frames, most)
        theirs = segment[frames.clamp(min=0)]
        mine = segment[place // rest.shape[1]]
        pair = (mine[..., None] == theirs[:, None]) & there[:, None]
        pair &= rows(rest).flatten(1)[..., None] & (best != place[..., None])
        entry = true_places(pair.flatten(), int(own.merges.sum() - own.anchors.sum()))
        return place.flatten()[entry // best.shape[2]], best.flatten()[entry]
