"""PruMerge: the patches that stand out, each with the patches that are like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.ragged import to_device, to_host, true_places
from vtc.functional.recoverable import visual_scores
from vtc.functional.token_correlation import iqr_fence
from vtc.kernels.cosine_topk import cosine_topk
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods import _fields
from vtc.methods._merging import official_length
from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import SignalRequest, VisualTokens


@register_method
@dataclass
class PruMerge(Method):
    """Keeps outliers of CLS attention and adds to each the patches of the likest keys.

    A token is its own patch plus its neighbours, each times its attention, `F_i + sum a_j F_j`; one
    extra token a tile sums up all patches that were dropped, `sum a_j F_j`.

    Budget: `retention=None` keeps as many as the attention has outliers, above Q3 + 1.5 (Q3 - Q1),
    and the extra token. With a number, tiles share the budget by their patches, the extra token
    counts, and the patches of the most attention stay. Quartiles are those of each tile and padding
    takes no part; the official code takes them over the batch.

    Paper: Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal
    Models" (arXiv 2403.15388, ICCV 2025). Its numbers are of a model tuned with it.
    Code: 42Shawn/LLaVA-PruMerge at 097c041 (Apache-2.0); written from the maths.

    Towers without CLS: the attention each patch receives takes the place of CLS [ours].

    Attributes:
        plus: False. PruMerge+: for every outlier three more patches of an even grid [code].
        grid: "even". Where these are: evenly among the patches that attention leaves [ours], or
            "official": every so many places of the tile, the last one left out, so that their number
            follows from those that are outliers too [code]; for the method's own count alone.
        cluster: 32. Patches added to each token [code].
        fence: 1.5. Interquartile ranges above Q3 where outliers begin [code].
        order: "raster". Tokens stand where their own patch is, the extra one where the dropped patch
            of the most attention is [ours], or "official": by falling attention, grid, extra token,
            in images of a single tile [code].
        layer: -1. Encoder layer of the scores: the last, behind the one that is read [code].
    """

    plus: bool = False
    grid: str = "even"
    cluster: int = 32
    fence: float = 1.5
    order: str = "raster"
    layer: int | float | str = -1

    name: ClassVar[str] = "prumerge"
    paper: ClassVar[str] = "arXiv 2403.15388"
    stage: ClassVar = "vision"
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.one_of("grid", self.grid, ("even", "official"))
        _fields.whole("cluster", self.cluster, 1)
        _fields.number("fence", self.fence, 0)
        _fields.one_of("order", self.order, ("raster", "official"))
        _fields.layer("layer", self.layer)

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        names = ("cls_query" if has_cls else "attention_received", "keys")
        return {name: SignalRequest(name, self.layer) for name in names}

    def kind(self, tokens: VisualTokens) -> tuple[Any, ...]:
        return (*super().kind(tokens), official_length(tokens, self.order))

    def attention(self, batch: ImageBatch) -> Tensor:
        """Float32 `[S, N]`, all heads as one; what overflowed in half precision has no weight."""
        if "cls_query" in batch.signals or "attention_received" not in batch.signals:
            scores = visual_scores(batch.signal("cls_query"), batch.signal("keys"))
        else:
            scores = batch.signal("attention_received").float()
        return torch.nan_to_num(scores)

    def centres(self, batch: ImageBatch, attention: Tensor) -> tuple[Tensor, list[int], list[int]]:
        """Patches that stay: int64 `[S, N]`, they first and in order; how many of each tile, and
        whether an extra token follows."""
        valid, patches = batch.tables.valid, attention.shape[1]
        if self.counts_itself:
            number = ((attention > iqr_fence(attention, valid, self.fence)[:, 2:]) & valid).sum(1)
            more = 3 * number
        else:
            shares = batch.shares(batch.available, batch.budgets)
            extra = (shares > 1).long()
            main = shares - extra
            host = -(-main // 4) if self.plus else main
            number, more = to_device(torch.stack([host, main - host]), attention)
        ranking, top = segmented_topk(attention, number, valid)
        place = torch.arange(patches, device=attention.device)
        key = torch.empty_like(ranking).scatter_(1, ranking, place.expand_as(ranking))
        keep = top
        if self.plus:
            rest = valid & ~top
            grid = _even(rest, more)
            if self.grid == "official" and self.counts_itself:
                # 1 / (number / patches) in float64, as published
                step = torch.floor(torch.floor(1 / (number.double() / patches)) / 3).clamp(min=1)
                grid = rest & (place % step[:, None] == 0) & (place < patches - 1)
                grid &= (number > 0)[:, None]
            keep = top | grid
        key = torch.where(top, key, place + torch.where(keep, patches, 2 * patches))
        if self.counts_itself:
            main = to_host(keep.sum(1))
            extra = (main < torch.tensor(batch.available)).long()
        return key.argsort(1), main.tolist(), extra.tolist()

    def select(self, batch: ImageBatch) -> Selection:
        attention, patches = self.attention(batch), batch.features.shape[1]
        valid, keys = batch.tables.valid, batch.signal("keys")[:, -patches:]
        order, main, extra = self.centres(batch, attention)
        members = [n * min(self.cluster, a - 1) for n, a in zip(main, batch.available, strict=True)]
        loose = [x * (a - n) for n, x, a in zip(main, extra, batch.available, strict=True)]
        count, more = to_device([main, extra], attention)
        most = max(*main, 1)

        centre = order[:, :most]
        chosen = keys.gather(1, centre[..., None].expand(-1, -1, keys.shape[-1]))
        found = cosine_topk(chosen, keys, self.cluster, valid=valid, itself=centre)
        used = torch.arange(most, device=order.device) < count[:, None]
        slot = true_places(used.flatten(), sum(main))
        tile, nth = slot // most, slot % most
        own = tile * patches + centre.flatten()[slot]
        given = found.flatten(0, 1)[slot]
        entry = true_places((given >= 0).flatten(), sum(members))
        row = entry // self.cluster
        member = tile[row] * patches + given.flatten()[entry]
        # the extra token of each tile that has one: all that was dropped
        dropped = (valid & (more > 0)[:, None]).flatten().index_fill(0, own, False).view_as(valid)
        best = attention.masked_fill(~dropped, -torch.inf).argmax(1)
        with_extra = true_places(more > 0, sum(extra))
        single = true_places(dropped.flatten(), sum(loose))
        number = len(own) + more.cumsum(0) - 1

        key = None
        if self.order == "official" and batch.tiles[0] == 1:
            key = torch.cat([nth, count[with_extra]])
        alone = torch.arange(len(own), device=own.device)
        source = torch.cat([own, member, single])
        weight = attention.flatten()[source]
        weight[: len(own)] = 1
        size = torch.cat([1 + (given >= 0).sum(1), dropped.sum(1)[with_extra]])
        entries = zip(main, members, loose, strict=True)
        return batch.merge(
            batch.tables.packed.flatten()[
                torch.cat([own, with_extra * patches + best[with_extra]])
            ],
            torch.cat([alone, alone[row], number[single // patches]]),
            source,
            weight,
            size,
            batch.per_image([n + x for n, x in zip(main, extra, strict=True)]),
            batch.per_image([sum(each) for each in entries]),
            key=key,
        )


def _even(among: Tensor, count: Tensor) -> Tensor:
    """Bool `[S, N]`: `count[s]` of the True entries of every row, evenly spaced; all of fewer."""
    size = among.sum(1, keepdim=True)
    count = torch.minimum(count[:, None], size)
    rank, size = among.cumsum(1) - 1, size.clamp(min=1)
    half = size // 2
    return among & (((rank + 1) * count + half) // size > (rank * count + half) // size)
