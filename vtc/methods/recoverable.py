"""Recoverable compression: outliers stay, the question brings some back, some more merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vtc.functional.recoverable import (
    Options,
    Recovery,
    budget_counts,
    recover,
    text_scores,
    visual_scores,
)
from vtc.methods import _fields
from vtc.methods._merge import assemble
from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.tokens import CompressedTokens, SignalRequest, VisualTokens


@register_method
@dataclass
class Recoverable(Method):
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
    text_source: str = "question"
    text_encoder: Any = None
    question: str | None = None
    layer: int | float = -1

    name: ClassVar[str] = "recoverable"
    paper: ClassVar[str] = "arXiv 2409.01179"
    signals: ClassVar[tuple[str, ...]] = ("cls_query", "keys", "patch_embedding", "text_embedding")
    stage: ClassVar = "vision"
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.one_of("variant", self.variant, ("sequential", "union"))
        _fields.one_of("keys", self.keys, ("official", "aligned"))
        _fields.one_of("centres", self.centres, ("official", "tokens"))
        _fields.one_of("rounding", self.rounding, ("official", "exact"))
        _fields.one_of("text_source", self.text_source, ("question", "official"))
        for field in ("visual_k", "text_k"):
            if getattr(self, field) is not None:
                _fields.whole(field, getattr(self, field), 1)
        _fields.whole("rest_k", self.rest_k, 1)
        _fields.whole("cluster", self.cluster, 0)
        _fields.number("text_weight", self.text_weight, 0)
        _fields.layer("layer", self.layer)

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        visual = ("cls_query",) if has_cls else ("attention_received",)
        return {
            **{name: SignalRequest(name, self.layer) for name in (*visual, "keys")},
            **{name: SignalRequest(name) for name in ("patch_embedding", "text_embedding")},
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
        """What happens to each patch of the image."""
        features = tokens.features
        tiles, patches, width = features.shape
        keys = tokens.signal("keys")
        if "cls_query" in tokens.signals or "attention_received" not in tokens.signals:
            visual = visual_scores(tokens.signal("cls_query"), keys)
        else:
            visual = tokens.signal("attention_received").float()
        text = text_scores(tokens.signal("patch_embedding"), tokens.signal("text_embedding"))
        keys = keys[:, keys.shape[1] - patches :]  # drops CLS where there is one
        valid = tokens.valid.to(features.device)

        own = recover(visual, text, keys, valid, width, self.options)
        counts = None
        if self.retention is not None or self.tokens is not None:
            counts = budget_counts(own, tokens.valid.sum(1).tolist(), self.budget(tokens))
        elif int(own.total.sum()) == 0:
            counts = torch.zeros(tiles, 4, dtype=torch.int64)
            counts[0, 0] = 1
        if counts is None:
            return own
        return recover(visual, text, keys, valid, width, self.options, counts)

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        plan = self.recover(tokens)
        patches = tokens.features.shape[1]
        attention = plan.visual

        main_tile, main_patch = plan.main.nonzero(as_tuple=True)
        tile = [main_tile]
        patch = [main_patch]
        output = [_count_from(main_tile, 0)]
        source = [main_tile * patches + main_patch]
        weight = [torch.ones_like(main_tile, dtype=torch.float32)]
        size = [torch.ones_like(main_tile)]
        done = len(main_tile)

        # centres: their own patch at full weight, members at their attention
        most = plan.members.shape[1]
        slot = torch.arange(most, device=attention.device)
        used = slot < plan.centre_count.to(attention.device)[:, None]
        centre_tile, nth = used.nonzero(as_tuple=True)
        centre_patch = plan.centre_order[centre_tile, nth]
        centre = _count_from(centre_tile, done)
        members = plan.members[centre_tile, nth]
        row, column = (members >= 0).nonzero(as_tuple=True)
        member_tile, member_patch = centre_tile[row], members[row, column]
        tile.append(centre_tile)
        patch.append(centre_patch)
        output += [centre, centre[row]]
        source += [centre_tile * patches + centre_patch, member_tile * patches + member_patch]
        weight += [
            torch.ones_like(centre, dtype=torch.float32),
            attention[member_tile, member_patch],
        ]
        size.append(1 + (members >= 0).sum(1))
        done += len(centre)

        # one extra token a tile: all of the rest but the centres; it stands where most attention is
        loose = plan.rest & plan.extra.to(attention.device)[:, None]
        loose[centre_tile, centre_patch] = False
        extra_tile = loose.any(1).nonzero().squeeze(1)
        best = attention.masked_fill(~loose, -torch.inf).argmax(1)
        number = torch.zeros_like(best).index_copy(0, extra_tile, _count_from(extra_tile, done))
        loose_tile, loose_patch = loose.nonzero(as_tuple=True)
        tile.append(extra_tile)
        patch.append(best[extra_tile])
        output.append(number[loose_tile])
        source.append(loose_tile * patches + loose_patch)
        weight.append(attention[loose_tile, loose_patch])
        size.append(loose.sum(1)[extra_tile])

        return assemble(
            tokens,
            torch.cat(tile),
            torch.cat(patch),
            torch.cat(output),
            torch.cat(source),
            torch.cat(weight),
            torch.cat(size),
            by_position=tokens.features.shape[0] > 1,
        )


def _count_from(like: Tensor, start: int) -> Tensor:
    """`start, start + 1, ...`, as many as `like` has."""
    return torch.arange(start, start + len(like), device=like.device)
