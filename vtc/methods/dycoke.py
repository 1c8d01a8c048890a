"""DyCoke, first stage: of every four frames one stays whole, the others keep what changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.errors import VTCError
from vtc.functional.clips import change
from vtc.functional.ragged import to_device, true_places
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods import _fields
from vtc.methods.compares_frames import ComparesFrames
from vtc.packing import Geometry
from vtc.registry import register_method
from vtc.selection import Selection

#: how many frames back each frame of a group of four is compared; 0: it stays whole
BACK = (0, 1, 2, 1)


@register_method
@dataclass
class DyCoke(ComparesFrames):
    """Of each group of four frames the first stays whole; the second and third keep the tokens that are
    least like the same place of the first, the fourth those least like the third's.

    Without a budget every compared frame keeps `1 - merging_ratio` of its tokens, 47.5 % of a clip in
    all. A budget solves for the ratio: whole frames first, the rest evenly for the compared ones; where
    it is smaller than the whole frames, these share it, by how unlike its frame's mean a token is
    [ours]. So it goes with an image, which is a first frame, and with every tile of one with crops;
    without a budget these stay whole.

    The official loops leave the third frame of the last group whole, lose the last of an odd number of
    frames, and need more than four. By default all groups are alike, and an incomplete one is cut like
    the others. The paper speaks of merging; the code drops, and so does this. The second stage, in the
    KV cache, is not here.

    Paper: Tao et al., "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models"
    (arXiv 2411.15024, CVPR 2025). Code: KD-TAO/DyCoke@dd74634 (Apache-2.0).

    Attributes:
        merging_ratio: 0.7. Share of a compared frame's tokens that goes, without a budget [code].
        groups: "all" alike and in packed order [ours], or "official": the loops as they are, with the
            tokens of a compared frame by rising likeness; goes by `merging_ratio` alone [code].
    """

    merging_ratio: float = 0.7
    groups: str = "all"

    name: ClassVar[str] = "dycoke"
    paper: ClassVar[str] = "arXiv 2411.15024"
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.number("merging_ratio", self.merging_ratio, 0, 1)
        _fields.one_of("groups", self.groups, ("all", "official"))
        if self.groups == "official" and not self.counts_itself:
            raise VTCError(
                "groups: got 'official' beside a budget, but it counts by `merging_ratio` alone"
            )

    def _roles(self, shape: Geometry) -> list[int | None]:
        """How many frames back each frame is compared, 0 for whole ones, None for lost ones."""
        if shape.tile_grid is not None:
            return [0] * shape.tiles
        roles: list[int | None] = [BACK[frame % 4] for frame in range(shape.tiles)]
        if self.groups == "official":
            for frame in range(2, shape.tiles, 4):
                if frame - 2 >= shape.tiles - 4:
                    roles[frame] = 0
            if shape.tiles % 2 and shape.tiles > 1:
                roles[-1] = None
        return roles

    def _counts(self, batch: ImageBatch, roles: list[int | None]) -> Tensor:
        """Int64 `[S]`, CPU: tokens that stay of each frame."""
        available = torch.tensor(batch.available)
        cut, whole = (torch.tensor([bool(r) for r in roles]), torch.tensor([r == 0 for r in roles]))
        if self.counts_itself:
            share = 1 - self.merging_ratio
            guard = 0 if self.groups == "official" else 1e-9
            kept = torch.floor(share * available.double() + guard).long()
            return torch.where(cut, kept, available * whole)
        firsts = batch.per_image((available * whole).tolist())
        first = [min(pair) for pair in zip(batch.budgets, firsts, strict=True)]
        rest = [budget - n for budget, n in zip(batch.budgets, first, strict=True)]
        return batch.shares(available * whole, first) + batch.shares(available * cut, rest)

    def select(self, batch: ImageBatch) -> Selection:
        tables = batch.tables
        roles = [role for shape in batch.shapes for role in self._roles(shape)]
        counts = self._counts(batch, roles)
        back, count = to_device(
            torch.stack([torch.tensor([r or 0 for r in roles]), counts]), tables.nth
        )
        before = torch.arange(len(roles), device=back.device) - back
        score = change(batch.features, torch.where(back > 0, before, -1), tables.valid)
        order, keep = segmented_topk(score, count, tables.valid)
        kept = batch.per_image(counts.tolist())
        if self.groups == "all":
            return batch.keep(keep, kept)

        # a frame's tokens follow each other: inside it a rank takes the place of the place
        rank = torch.arange(order.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, rank)
        first = tables.packed.masked_fill(~tables.valid, tables.origin.shape[1]).amin(1)
        key = torch.where((back > 0)[:, None], first[:, None] + rank, tables.packed)
        source = true_places(keep.flatten(), sum(kept))
        stand = torch.cat([key.flatten()[source], tables.separators]).argsort()
        place = torch.cat([tables.packed.flatten()[source], tables.separators])[stand]
        lengths = [n + s for n, s in zip(kept, batch.separators, strict=True)]
        return batch.gather(place, lengths, batch.separators)
