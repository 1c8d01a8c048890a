"""Recoverable compression: outliers stay, the question brings some back, some more merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.errors import VTCError
from vtc.functional.ragged import to_device, true_places
from vtc.functional.recoverable import (
    Counts,
    Options,
    Recovery,
    budget_counts,
    recover,
    similarity_scores,
    text_scores,
    visual_scores,
)
from vtc.methods import _fields
from vtc.methods._merging import official_length
from vtc.methods.asks_text import AsksText
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import SignalRequest, VisualTokens


@register_method
@dataclass
class Recoverable(AsksText):
    """Keeps visual outliers, recovers patches that fit the question, merges some of the rest.

    Three times a one-dimensional local outlier factor says how many: patches by CLS attention a,
    patches by likeness b to the question, and centres among what is left. Each centre takes up the
    patches with the likest keys and text scores, `F_i + sum a_j F_j`; one extra token sums up all
    others, `sum a_j F_j`.

    Budget: `retention=None` keeps the data-dependent count, about a tenth. With a number, tiles
    share the budget by one more than their own counts, a tile's visual, recovered and merged tokens
    keep their own proportions, and each kind is taken by its own ranking; merged tokens count as
    patch tokens and the sum is exact [ours].

    Tiles of an image with crops are treated one by one under one question, without their padding
    [ours]; tokens then stand in the packed order, so that newlines keep their meaning. A single
    tile has the official order: kept patches, centres, extra token. If no tile has an outlier the
    patch with the most attention stays [ours: the official code returns nothing].

    Towers without CLS: the attention each patch receives is the visual score [ours]. The text score
    needs a space shared with text, which the model side has to supply.

    Paper: "Recoverable Compression: A Multimodal Vision Token Recovery Mechanism Guided by Text
    Information" (arXiv 2409.01179, AAAI 2025).
    Code: banjiuyufen/Recoverable-Compression at d927594. By default it is followed where it is
    merely odd (`keys`, `centres`, `rounding`): its published scores come from that and nothing
    shows the corrected forms to be better. It is corrected where it does not do what the paper is
    about: the question never reaches its text encoder (`text_source`).

    Attributes:
        variant: "sequential". The text filter works on what the visual one left [code, active], or
            "union": both work on all patches [code, commented out].
        keys: "official". Patches of the rest are compared by keys that belong to other patches
            [code, a slip], or by their own, "aligned" [ours].
        centres: "official". The outlier share of the rest is applied to the channel count (in the
            union variant to the number of patches) [code, a slip], or to the number of patches
            left, "tokens" [ours].
        rounding: "official". Counts are rounded down from float64 ratios [code, loses a token now
            and then], or "exact" [ours].
        visual_k, text_k: None. Neighbours of the two filters; None is 20, or 10 in the union
            variant [code].
        rest_k: 10. Neighbours of the filter that counts centres [code].
        cluster: 32. Patches merged into each centre [code].
        text_weight: 50.0. Weight of the text score beside the keys' cosine [code].
        text_score: "aligned". Cosine of patch and question in a space that image and text share
            [code], or "similarity": dot products of the visual tokens and the question's tokens, both
            as the language model reads them, after READ (arXiv 2412.17741) [ours]. The latter needs
            no text tower, so it works on models that have none; nothing ever taught those vectors to
            be alike.
        text_source: "question". Text that guides: the last user turn, or "official": the prompt's
            first line, which never holds the question [code]. Read by the model side.
        text_encoder: None. Where the text tower comes from when the model has none: a hub id, a
            folder or a pair of callables `(embed, project)`. Read by the model side.
        question: None. The text itself, instead of one found in the prompt. Read by the model side.
        layer: -1. Encoder layer of query and keys [code: index 23, the last of CLIP-L].
    """

    variant: str = "sequential"
    keys: str = "official"
    centres: str = "official"
    rounding: str = "official"
    visual_k: int | None = None
    text_k: int | None = None
    rest_k: int = 10
    cluster: int = 32
    text_weight: float = 50.0
    text_score: str = "aligned"
    layer: int | float = -1

    name: ClassVar[str] = "recoverable"
    paper: ClassVar[str] = "arXiv 2409.01179"
    shown: ClassVar[bool] = True
    stage: ClassVar = "vision"
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.one_of("variant", self.variant, ("sequential", "union"))
        _fields.one_of("keys", self.keys, ("official", "aligned"))
        _fields.one_of("centres", self.centres, ("official", "tokens"))
        _fields.one_of("rounding", self.rounding, ("official", "exact"))
        _fields.one_of("text_score", self.text_score, ("aligned", "similarity"))
        if self.text_score == "similarity" and self.text_encoder is not None:
            raise VTCError(
                f"text_encoder: got {self.text_encoder!r}, but text_score='similarity' uses none"
            )
        for field in ("visual_k", "text_k"):
            if getattr(self, field) is not None:
                _fields.whole(field, getattr(self, field), 1)
        _fields.whole("rest_k", self.rest_k, 1)
        _fields.whole("cluster", self.cluster, 0)
        _fields.number("text_weight", self.text_weight, 0)
        _fields.layer("layer", self.layer)

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        visual = ("cls_query",) if has_cls else ("attention_received",)
        aligned = self.text_score == "aligned"
        text = ("patch_embedding", "text_embedding") if aligned else ("text_similarity",)
        return {
            **{name: SignalRequest(name, self.layer) for name in (*visual, "keys")},
            **{name: SignalRequest(name) for name in text},
        }

    @property
    def options(self) -> Options:
        """The fields that the maths reads."""
        k = 20 if self.variant == "sequential" else 10
        return Options(
            self.variant,
            self.keys,
            self.centres,
            self.rounding,
            self.visual_k or k,
            self.text_k or k,
            self.rest_k,
            self.cluster,
            self.text_weight,
        )

    def recover(self, tokens: VisualTokens) -> Recovery:
        """What happens to each patch of an image."""
        return self._recover(ImageBatch([tokens], [self]))

    def _recover(self, batch: ImageBatch) -> Recovery:
        patches, width = batch.features.shape[1:]
        keys = batch.signal("keys")
        if "cls_query" in batch.signals or "attention_received" not in batch.signals:
            visual = visual_scores(batch.signal("cls_query"), keys)
        else:
            visual = batch.signal("attention_received").float()
        valid = batch.tables.valid
        if self.text_score == "aligned":
            question = torch.stack([image.signal("text_embedding") for image in batch.images])
            question = question.to(visual.device, non_blocking=True)[batch.tables.image]
            text = text_scores(batch.signal("patch_embedding"), question)
        else:
            text = similarity_scores(
                batch.signal("text_similarity"), width, valid, batch.tables.image
            )
        keys = keys[:, keys.shape[1] - patches :]  # drops CLS where there is one

        def wanted(own: Counts) -> Counts:
            if self.counts_itself:
                return _at_least_one(own, batch)
            return budget_counts(own, batch.shares(own.total + 1, batch.budgets))

        exact = not self.counts_itself
        return recover(visual, text, keys, valid, width, self.options, wanted, exact)

    def kind(self, tokens: VisualTokens) -> tuple[Any, ...]:
        return (*super().kind(tokens), official_length(tokens, "official"))

    def select(self, batch: ImageBatch) -> Selection:
        plan = self._recover(batch)
        counts, attention = plan.counts, plan.visual.flatten()
        patches = batch.features.shape[1]
        left = torch.tensor(batch.available) - counts.main
        gathered = counts.centre * (left - 1).clamp(min=0, max=self.cluster)
        loose_count = counts.extra * (left - counts.centre)

        main = true_places(plan.main.flatten(), _sum(counts.main))
        # centres: their own patch at full weight, members at their attention
        host = torch.stack([counts.main.cumsum(0) - counts.main, counts.main, counts.centre])
        before, main_count, centre_count = to_device(host, attention)
        most = max(plan.members.shape[1], 1)
        used = torch.arange(most, device=attention.device) < centre_count[:, None]
        slot = true_places(used.flatten(), _sum(counts.centre))
        centre_tile, nth = slot // most, slot % most
        centre = centre_tile * patches + plan.centre_order[centre_tile, nth]
        members = plan.members.flatten(0, 1)[slot]
        present = members >= 0
        entry = true_places(present.flatten(), _sum(gathered))
        row = entry // max(self.cluster, 1)
        member = centre_tile[row] * patches + members.flatten()[entry]
        # one extra token a tile: all of the rest but the centres; it stands where most attention is
        more = to_device(counts.extra, attention)
        loose = plan.rest & (more > 0)[:, None]
        loose = loose.flatten().index_fill(0, centre, False).view_as(loose)
        best = plan.visual.masked_fill(~loose, -torch.inf).argmax(1)
        extra_tile = true_places(more > 0, _sum(counts.extra))
        single = true_places(loose.flatten(), _sum(loose_count))
        number = len(main) + len(centre) + more.cumsum(0) - 1

        key = None
        if batch.tiles[0] == 1:  # the official order: kept patches, centres, extra token
            rank = torch.arange(len(main), device=main.device) - before[main // patches]
            behind = (main_count + centre_count)[extra_tile]
            key = torch.cat([rank, main_count[centre_tile] + nth, behind])
        place = torch.cat([main, centre, extra_tile * patches + best[extra_tile]])
        alone = torch.arange(len(main) + len(centre), device=main.device)
        source = torch.cat([main, centre, member, single])
        weight = attention[source]
        weight[: len(alone)] = 1
        merged = counts.main + counts.centre + gathered + loose_count
        return batch.merge(
            batch.tables.packed.flatten()[place],
            torch.cat([alone, alone[len(main) :][row], number[single // patches]]),
            source,
            weight,
            torch.cat([torch.ones_like(main), 1 + present.sum(1), loose.sum(1)[extra_tile]]),
            batch.per_image(counts.total.tolist()),
            batch.per_image(merged.tolist()),
            key=key,
        )


def _at_least_one(own: Counts, batch: ImageBatch) -> Counts:
    """`own`, and the patch with the most attention of images that nothing would be left of."""
    totals = batch.per_image(own.total.tolist())
    rows = zip(batch.tiles, totals, strict=True)
    bump = torch.tensor([int(nth == 0 == total) for n, total in rows for nth in range(n)])
    return Counts(own.visual + bump, own.text, own.main + bump, own.centre, own.extra)


def _sum(counts: Tensor) -> int:
    """The sum of counts on the CPU."""
    return sum(counts.tolist())
