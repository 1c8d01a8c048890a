"""Coverage: a few patches of all tiles that stand for everything that is looked at."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.errors import VTCError
from vtc.functional.cover import nearest_of, representatives
from vtc.functional.greedy import cosines
from vtc.functional.ragged import to_device
from vtc.kernels._ordering import LONGEST
from vtc.kernels.greedy_pick import greedy_pick
from vtc.methods import _fields
from vtc.methods._merging import merge_all
from vtc.methods._relevance import asked_share, check_fields, relevance_requests
from vtc.methods.asks_text import AsksText
from vtc.methods.cls_guided import ClsGuided
from vtc.methods.greedy import Candidates, Greedy, Picks
from vtc.methods.proportional import Proportional
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import SignalRequest, VisualTokens

#: how sharply the question divides itself among patches: its softmax has this many deviations
QUESTION = 2.0


@register_method
@dataclass
class Coverage(AsksText, ClsGuided, Greedy, Proportional):
    """Keeps the patches that stand best for all patches, those that CLS attends to counting most.

    A patch i is covered by a set as well as the likest of it: `max(cosine, 0) ** sharpness`, by the
    features that the language model reads. Each pick is the patch that adds most to the cover of all
    patches of the image, each weighted by its demand, the attention of CLS (facility location, whose
    greedy picks reach 63 % of the best there is at least). Tiles have no budgets: what one shows is
    covered by the others as well.

    The thumbnail shows what the crops show, coarsely. With few tokens its patches are a luxury, so their
    demand counts `min(1, overview * budget / patches of a tile)`.

    Then every patch is merged into the kept one that is likest. A token is the mean of what it stands
    for, weighted by demand and cover: by what each adds to the objective.

    Above 4,096 patches of an image the 4,096 in the greatest demand compete, and each other one hands
    its demand to the likest of them; where more than 2,048 are to be kept of so many, tiles share the
    budget. Frames of a clip are tiles, without a thumbnail.

    With `guidance` the question has a share of the demand. What CLS attends to and what fits the
    question sum to 1 over the image each, and are mixed. At 0 the question is not read.

    A method of this library. How its constants were chosen, on validation scenes of the reference model:
    `python -m vtc.eval.calibrate_coverage`.

    Attributes:
        sharpness: 2.0. Power of the cosines: larger asks for likeness that is closer.
        overview: 2.0. Weight of the thumbnail for each share of a tile that the budget could fill; 0
            covers the crops alone.
        merge: True. Whether what is dropped is merged into what stands for it.
        guidance: 0.0. Share of the question in the demand, from 0 to 1; docs/own-methods.md has what it
            brings.
        text_score: "aligned". What fits is found in the space that image and text share; "similarity"
            compares features with the question's tokens as the language model reads both, and needs no
            text tower.
        sign: "auto". As `CDPruner` has it: negated cosine for "aligned", plain one for "similarity"; or
            "negative" or "positive" for either.
        layer: -1. Layer of the attention of CLS, the last; where the tower has no CLS, of the attention
            that each patch receives. "read" is the layer that the features come from.
        scope: "image". Patches cover all of their image, or their "tile" alone.
    """

    sharpness: float = 2.0
    overview: float = 2.0
    merge: bool = True
    guidance: float = 0.0
    text_score: str = "aligned"
    sign: str = "auto"
    layer: int | float | str = dataclasses.field(default=-1, kw_only=True)
    scope: str = dataclasses.field(default="image", kw_only=True)

    name: ClassVar[str] = "coverage"
    pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.number("sharpness", self.sharpness, 0.1)
        _fields.number("overview", self.overview, 0)
        _fields.flag("merge", self.merge)
        if self.proportional and not self.merge:
            raise VTCError(
                "proportional: got True beside merge=False, by which a token stands for itself alone"
            )
        _fields.number("guidance", self.guidance, 0, 1)
        check_fields(self.text_score, self.sign)

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        found = super().requests(has_cls)
        if self.guidance:
            found |= relevance_requests(self.text_score, "read")
        return found

    def kind(self, tokens: VisualTokens) -> tuple[Any, ...]:
        return (*super().kind(tokens), tokens.valid.numel() > LONGEST)

    def _parts(self, tokens: VisualTokens) -> int:
        if self.scope == "image" and self.budget(tokens) <= LONGEST // 2:
            return 0
        return super()._parts(tokens)

    def demand(self, batch: ImageBatch) -> Tensor:
        """Float32 `[S, N]`: how much each patch asks to be stood for, 0 for padding."""
        return self._weighed(batch, self._attended(batch))

    def _attended(self, batch: ImageBatch) -> Tensor:
        """Float32 `[S, N]`: the attention to each patch, 0 for padding."""
        return self.attention(batch) * batch.tables.valid

    def _weighed(self, batch: ImageBatch, demand: Tensor) -> Tensor:
        """`demand`, that of the thumbnail weighed by what it is worth at the budget, mixed with that of
        the question."""
        demand = self._of_budget(batch, demand)
        if not self.guidance:
            return demand
        sums = batch.padded(demand, 0).flatten(1).sum(1).clamp(min=torch.finfo(torch.float32).tiny)
        asked = asked_share(batch, self.text_score, self.sign, QUESTION)
        return torch.lerp(demand / sums[batch.tables.image, None], asked, self.guidance)

    def _of_budget(self, batch: ImageBatch, demand: Tensor) -> Tensor:
        """`demand`, that of the thumbnail weighed by what it is worth at the budget."""
        tables = batch.tables
        if batch.images[0].tile_grid is None:
            return demand
        patches = demand.shape[1]
        worth = [min(1.0, self.overview * budget / patches) for budget in batch.budgets]
        of_tile = to_device(worth, demand).to(demand)[tables.image]
        return demand * torch.where(tables.nth == 0, of_tile, 1)[:, None]

    def pick(self, batch: ImageBatch) -> Picks:
        return self._pick(self.candidates(batch), self.demand(batch))

    def _pick(self, among: Candidates, demand: Tensor) -> Picks:
        rows, needs, valid = among.of(among.batch.features), among.of(demand), among.valid
        chosen = None
        if rows.shape[1] > LONGEST:
            chosen, needs, valid = representatives(rows, needs, valid, LONGEST)
            rows = rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[2]))
        covers = cosines(rows, valid).clamp_(min=0).pow_(self.sharpness)
        count, most = to_device(among.counts, rows), max(among.counts.tolist())
        order = greedy_pick("cover", covers, count, most, None, valid, needs)
        if chosen is not None:
            order = torch.where(order < 0, -1, chosen.gather(1, order.clamp(min=0)))
        return Picks(among, order)

    def select(self, batch: ImageBatch) -> Selection:
        demand = self.demand(batch)
        picks = self._pick(self.candidates(batch), demand)
        if not self.merge:
            return picks.keep()
        among = picks.among
        owner, close = nearest_of(among.of(batch.features), picks.order, picks.order >= 0)
        share = among.of(demand) * close.clamp(min=0).pow(self.sharpness)
        owner, share = among.back(among.of(places(batch)).gather(1, owner)), among.back(share)
        return merge_all(batch, picks.mask, owner, share, picks.counts)


def places(batch: ImageBatch) -> Tensor:
    """Int64 `[S, N]`: every patch's number among all of the batch."""
    valid = batch.tables.valid
    return torch.arange(valid.numel(), device=valid.device).view_as(valid)
