"""HoloV: stretches of the picture share the tokens, so that none is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.holov import cut, quotas, run_scores
from vtc.functional.ragged import to_device, to_host, true_places
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods import _fields
from vtc.methods.cls_guided import ClsGuided
from vtc.registry import register_method
from vtc.selection import Selection


@register_method
@dataclass
class HoloV(ClsGuided):
    """Cuts an image's tokens into runs, gives each a share, and keeps the most attended of each.

    A run's share follows from its attention and from how much the likeness among its tokens varies.
    In the published code this variance is scaled by a factor of its own for every run and cancels, so
    that shares are those of the mean attention alone.

    Runs are cut from all tiles of an image in the order they are packed, padding left out; they are
    stretches of the raster sequence, not the crops of the paper's text. A run may have more tokens
    granted than it holds: the official code puts zero vectors there, here other runs get them. Tokens
    stay in raster order and newlines in place.

    Paper: Zou et al., "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic
    Context Retention" (arXiv 2510.02912, NeurIPS 2025).
    Code: obananas/HoloV at 1d2e65e (Apache-2.0); written from the maths.

    Attributes:
        runs: 16. Runs of an image [code for LLaVA]; None for `1024 / 576 * patches / tokens`, rounded
            down, at least 1 [code for Qwen2.5-VL].
        alpha: 0.09. Weight of the variance [code].
        factor: "run". What scales it: a factor of each run [code], which cancels it, or one of all
            runs of the "image" [ours], which does what the paper means.
    """

    runs: int | None = 16
    alpha: float = 0.09
    factor: str = "run"

    name: ClassVar[str] = "holov"
    paper: ClassVar[str] = "arXiv 2510.02912"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.runs is not None:
            _fields.whole("runs", self.runs, 1)
        _fields.number("alpha", self.alpha, 0)
        _fields.one_of("factor", self.factor, ("run", "image"))

    def _cut(self, patches: int, tokens: int) -> list[tuple[int, int]]:
        """The runs of an image."""
        runs = self.runs or max(1, int(1024 / 576 * patches / tokens))
        return cut(patches, runs)

    def select(self, batch: ImageBatch) -> Selection:
        tables, sizes = batch.tables, [shape.patches for shape in batch.shapes]
        cuts = [self._cut(*each) for each in zip(sizes, batch.budgets, strict=True)]
        most = max(len(runs) for runs in cuts)
        cuts = [runs + [(0, 0)] * (most - len(runs)) for runs in cuts]
        capacity = [[length for _, length in runs] for runs in cuts]
        before = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
        table = torch.tensor(cuts)  # [B, runs, 2]
        table[..., 0] += before[:, None]
        start, length = to_device(table.flatten(0, 1).mT.contiguous(), tables.valid)

        # [runs, tokens]: patches of all tiles, in the order that they are packed
        source = tables.origin[0, true_places(tables.origin[0] >= 0, sum(sizes))]
        nth = torch.arange(max(map(max, capacity)), device=source.device)
        real = nth < length[:, None]
        source = source[(start[:, None] + nth).masked_fill(~real, 0)]
        attention = self.attention(batch).flatten()[source]
        features = batch.features.flatten(0, 1)[source]
        together = most if self.factor == "image" else 1
        scores = run_scores(features, attention, real, self.alpha, together)

        granted = quotas(to_host(scores).view(-1, most), capacity, batch.budgets)[1]
        keep = segmented_topk(attention, to_device(granted.flatten(), attention), real)[1]
        return batch.keep(_spread(keep, source, real, tables.valid), batch.budgets)


def _spread(keep: Tensor, source: Tensor, real: Tensor, valid: Tensor) -> Tensor:
    """`keep` of runs as a mask of the patches, like `valid`."""
    out = torch.zeros(valid.numel() + 1, dtype=torch.bool, device=valid.device)
    out.scatter_(0, torch.where(real, source, valid.numel()).flatten(), keep.flatten())
    return out[:-1].view_as(valid)
