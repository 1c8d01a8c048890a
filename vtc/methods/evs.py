"""EVS: the tokens of a clip that changed since the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.clips import change
from vtc.methods.compares_frames import ComparesFrames
from vtc.methods.scored import Scored
from vtc.registry import register_method


@register_method
@dataclass
class EVS(ComparesFrames, Scored):
    """Keeps the tokens with the largest `1 - cos` to the same place of the frame before; the first
    frame in front of all others. Positions stay, the budget is met over the whole clip.

    `retention` is 1 minus the official pruning rate. The official count is never below one frame,
    and so the first one always whole; here the budget is met [ours], and where it is smaller than a
    frame the tokens that are least like the mean of their frame stay [ours]. So it goes with an image
    too, and with each tile of one with crops, which nothing came before.

    Paper: "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference"
    (arXiv 2510.14624). Code: vLLM 0.32.0, `video_prune/evs.py`, whose header holds a proprietary notice
    beside Apache-2.0: written from the formula alone.
    """

    name: ClassVar[str] = "evs"
    paper: ClassVar[str] = "arXiv 2510.14624"

    def score(self, batch: ImageBatch) -> Tensor:
        tables = batch.tables
        follows = (tables.nth > 0) & (batch.images[0].tile_grid is None)
        before = torch.arange(-1, len(follows) - 1, device=follows.device)
        return change(batch.features, torch.where(follows, before, -1), tables.valid)
