"""VidCom2: unusual frames get more tokens, unusual tokens stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.clips import frame_budgets, likeness
from vtc.functional.ragged import to_device, to_host
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods import _fields
from vtc.methods.compares_frames import ComparesFrames
from vtc.registry import register_method
from vtc.selection import Selection


@register_method
@dataclass
class VidCom2(ComparesFrames):
    """Shares the budget among the frames by how unlike the clip's mean they are; of each frame the
    tokens stay that are least like the means of clip and frame.

    Only the half of the channels that varies least takes part. An image is a clip of one frame; of one
    with crops every tile is a frame, so that the tiles unlike the others get more.

    Official and sensible differ in the count: rounding and the bounds of a frame let the official total
    drift from the budget. As served (vLLM) a surplus is taken from the most ordinary tokens of the
    clip, and what is missing filled up with the least ordinary; that is the default. Officially,
    LLaVA-Video's newlines gather behind each frame; here they stay in place.

    Paper: Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large
    Language Models" (arXiv 2505.14454, EMNLP 2025). Code: xuyang-liu16/VidCom2@944a17d (Apache-2.0) and
    vLLM 0.32.0.

    Attributes:
        count: "exact". The budget exactly [vLLM], or "official": what the frames' shares come to [code].
    """

    count: str = "exact"

    name: ClassVar[str] = "vidcom2"
    paper: ClassVar[str] = "arXiv 2505.14454"

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.one_of("count", self.count, ("exact", "official"))

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.count == "exact"

    def steps(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """Likeness of each token, float32 `[B, M, N]` (low stays), and tokens of each frame."""
        valid = batch.padded(batch.tables.valid, False)
        of_clip, of_frame = likeness(batch.padded(batch.features, 0), valid)
        shares = [
            budget / shape.patches if m.tokens else m.ratio
            for m, shape, budget in zip(batch.methods, batch.shapes, batch.budgets, strict=True)
        ]
        base = to_device(torch.tensor(shares, dtype=torch.float32), of_clip)
        return of_clip + of_frame, frame_budgets(of_clip, valid, base)

    def select(self, batch: ImageBatch) -> Selection:
        alike, frames = self.steps(batch)
        valid = batch.padded(batch.tables.valid, False)
        _, keep = segmented_topk(-alike.flatten(0, 1), frames.flatten(), valid.flatten(0, 1))
        keep = keep.view_as(valid).flatten(1)
        if self.count == "official":
            return batch.keep(batch.unpadded(keep), to_host(frames.sum(1)).tolist())
        # likeness is at most 10: behind what its frame keeps, before what it does not
        score = torch.where(keep, 0.0, -16.0) - alike.flatten(1)
        _, keep = segmented_topk(score, to_device(batch.budgets, score), valid.flatten(1))
        return batch.keep(batch.unpadded(keep), batch.budgets)
