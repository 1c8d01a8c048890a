"""VisPruner: half by attention, half by being unlike the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from vtc.batch import ImageBatch
from vtc.functional.ragged import to_device
from vtc.functional.vispruner import choose
from vtc.methods import _fields
from vtc.methods.cls_guided import ClsGuided
from vtc.registry import register_method
from vtc.selection import Selection


@register_method
@dataclass
class VisPruner(ClsGuided):
    """Keeps the patches with the most CLS attention, and of the others those that are least alike.

    The others are thinned in rounds: every second one is compared with those between, and the ones
    that are likest to any of them go, a few a round. The first round takes them by attention, later
    ones by likeness, so that the order is a part of the method.

    Each tile has a share of the budget by its patches. The official code fails where an odd number is
    compared; here the compared half is then the larger.

    Rounds follow each other: 64 of 576 patches are 64 of them, each some twenty launches. The
    likeness of all pairs of a tile is held.

    Paper: Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token
    Pruning in VLMs" (arXiv 2412.01818v2, ICCV 2025).
    Code: Theia-4869/VisPruner at aefa01a (Apache-2.0); written from the maths.

    Attributes:
        important: 0.5. Share of a tile's tokens that attention picks, rounded down [code; the
            authors also use 0.75].
        step: 8. Patches dropped in a round, of every tile [code]. More are faster.
    """

    important: float = 0.5
    step: int = 8

    name: ClassVar[str] = "vispruner"
    paper: ClassVar[str] = "arXiv 2412.01818v2"
    stage: ClassVar = "vision"

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.number("important", self.important, 0, 1)
        _fields.whole("step", self.step, 1)

    def select(self, batch: ImageBatch) -> Selection:
        valid = batch.tables.valid
        shares = batch.shares(batch.available, batch.budgets).tolist()
        front = [math.floor(self.important * share + 1e-9) for share in shares]
        wanted = [share - some for share, some in zip(shares, front, strict=True)]
        lengths = [
            n - some if goal else 0
            for n, some, goal in zip(batch.available, front, wanted, strict=True)
        ]
        attention = self.attention(batch)
        order, left = choose(attention, batch.features, valid, front, lengths, wanted, self.step)
        patches = torch.arange(valid.shape[1], device=valid.device)
        keep = torch.zeros_like(valid).scatter(1, order, patches < to_device(front, order)[:, None])
        # -1 goes into a column of its own
        spare = torch.nn.functional.pad(keep, (0, 1))
        spare.scatter_(1, torch.where(left < 0, len(patches), left), True)
        return batch.keep(spare[:, :-1], batch.budgets)
