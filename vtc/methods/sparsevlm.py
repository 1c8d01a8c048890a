"""SparseVLM: words that matter rate the image tokens, and part of what goes is recycled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.functional.density_peaks import clusters
from vtc.functional.ragged import to_host
from vtc.functional.windows import rank_within
from vtc.kernels.merge import weighted_merge
from vtc.kernels.segmented_topk import segmented_topk
from vtc.layers import Choice, LayerView, Seen
from vtc.methods import _fields
from vtc.methods._layers import marked, of_group, places, question, tokens_of
from vtc.methods.layer_method import SeveralCuts, Share
from vtc.registry import register_method

#: the best that stay behind each cut, of the 576 tokens of LLaVA-1.5
KEPT, OF = (300, 200, 110), 576


class Sets(NamedTuple):
    """What a cut makes of the image tokens.

    Attributes:
        kept: bool `[B, S]`, the best ones.
        members: long `[B * G, N]`, columns of what is recycled of each group, best first; -1 for none.
        centre: long `[B * G, N]`, the entry of `members` that each goes into the cluster of.
        order: long `[B * G, N]`, entries by falling peak score: the first ones are the centres.
    """

    kept: Tensor
    members: Tensor
    centre: Tensor
    order: Tensor


@register_method
@dataclass
class SparseVLM(SeveralCuts):
    """Keeps the image tokens that the question's telling words attend to most, and averages part of the
    others into a few clusters.

    Telling words, the raters, are chosen once, by the embeddings: every image token divides itself among
    the tokens of the question by a softmax of their products, and words above the mean share rate. In
    front of layer K the score is the attention of layer K - 1, mean over heads and raters, behind the
    softmax over all tokens. Of the tokens dropped the best 30 % and one more are clustered by density
    peaks, ten to a cluster and one more, and every cluster is averaged into the place of its centre.

    Without a budget 300, 200 and 110 of 576 stay, in proportion for other sizes, and the clusters come
    on top: 206.5 tokens on average where the paper says 192. A budget counts clusters too.

    The code adds noise to the densities, which alone decides between two clusters; here the first token
    of equal ones is the denser. It also takes one row alone, and moves the clusters behind the kept
    tokens, with positions counted afresh; here the centres keep their places. Raters stand behind the
    last image of a row [ours]; where nothing does, the last token of the prompt rates. Version 2 of the
    code is `recycle=False, heads=14, unbias=True`, with counts such as `kept=(300, 200, 118)`, and was
    not compared with official outputs.

    Paper: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model
    Inference" (arXiv 2410.04417, ICML 2025).
    Code: Gumpest/SparseVLMs@26a5f48 (Apache-2.0); written from the maths.

    Attributes:
        kept: None. The best tokens of an image behind each cut, clusters not counted, in place of a
            budget; the paper's "128" is (303, 110, 36), its "64" (66, 30, 17) [code].
        recycle: True. Whether dropped tokens are averaged into clusters; version 2 of the code does not.
        heads: None. How many heads rate, those whose raters look at the image most; None for all.
            Version 2 of the code has 14 [code].
        unbias: False. Whether attention is divided by what positions alone give: that of queries and
            keys which are all ones, under the same rotary embedding, as version 2 of the code has it.
            Heads are chosen by the quotients [ours].
    """

    kept: Sequence[int] | None = None
    recycle: bool = True
    heads: int | None = None
    unbias: bool = False

    name: ClassVar[str] = "sparsevlm"
    paper: ClassVar[str] = "arXiv 2410.04417"
    paper_layers: ClassVar[tuple[int, ...]] = (3, 7, 16)
    reads_before: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.flag("recycle", self.recycle)
        _fields.flag("unbias", self.unbias)
        if self.heads is not None:
            _fields.whole("heads", self.heads, 1)
        if self.kept is not None:
            for number in self.kept:
                _fields.whole("kept", number, 0)
            if len(self.kept) != len(KEPT):
                raise VTCError(f"kept: got {self.kept!r}, allowed are {len(KEPT)} whole numbers")
            if not self.counts_itself:
                raise VTCError(f"kept: got {self.kept!r} beside a budget, give only one")

    # -- how many ----------------------------------------------------------------------------

    def shares(self) -> tuple[Share, ...]:
        out, now = [], OF
        for best in KEPT:
            now = best + (clusters_of(now - best) if self.recycle else 0)
            out.append(Fraction(now, OF))
        return tuple(out)

    def published(self, tokens: int) -> tuple[int, ...]:
        out, now = [], tokens
        for cut in range(len(KEPT)):
            best = max(0, min(self._best(cut, tokens), now - 1))
            now = best + (clusters_of(now - best) if self.recycle and now else 0)
            out.append(now)
        return tuple(out)

    def _best(self, cut: int, tokens: int) -> int:
        return tokens * KEPT[cut] // OF if self.kept is None else self.kept[cut]

    def _wanted(self, seen: Seen, group: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Long `[B, G]`: the best that stay of each group, and how many clusters there are."""
        now = tokens_of(group, counts)
        if not self.counts_itself:
            number = torch.zeros_like(now)
            if self.recycle:
                # best + clusters is the budget: the fewest clusters, which settle from below
                for _ in range(6):
                    number = clusters_of(now - counts + number)
            number = torch.where(counts < now, torch.minimum(number, counts), 0)
            return torch.minimum(counts, now) - number, number
        if self.kept is None:
            assert seen.marks is not None
            whole = counts.new_zeros(counts.shape[0], counts.shape[1] + 1)
            slot = torch.where(group < 0, counts.shape[1], group)
            whole = whole.scatter_reduce(1, slot, seen.marks[..., 1], "amax")[:, :-1]
            best = whole * KEPT[seen.cut] // OF
        else:
            best = torch.full_like(now, self.kept[seen.cut])
        best = torch.minimum(best, now - 1).clamp(min=0)
        number = clusters_of(now - best) if self.recycle else torch.zeros_like(now)
        return best, torch.where(now > 0, number, 0)

    # -- who rates ---------------------------------------------------------------------------

    def start(self, seen: Seen, embeds: Tensor) -> Tensor | None:
        """Long `[B, S, 2]`: 1 for raters; the tokens of the group that a token is of."""
        group, counts = self.groups(seen)
        size = of_group(tokens_of(group, counts), group).masked_fill(group < 0, 0)
        return torch.stack([self.raters(seen, embeds).long(), size], -1)

    def raters(self, seen: Seen, embeds: Tensor) -> Tensor:
        """Bool `[B, S]`: tokens of the question that more than the mean of the image goes to."""
        text, image = question(seen), seen.image >= 0
        most = int(to_host(text.sum(1).amax()))
        place = places(text.cumsum(1) - 1, torch.where(text, 0, -1), 1, max(most, 1)).squeeze(1)
        real, index = place >= 0, place.clamp(min=0)
        words = embeds.gather(1, index[..., None].expand(-1, -1, embeds.shape[2])).float()
        goes = embeds.float() @ words.mT  # [B, S, T]
        goes = torch.softmax(goes.masked_fill(~real[:, None], torch.finfo(goes.dtype).min), -1)
        mean = goes.masked_fill(~image[..., None], 0).sum(1) / image.sum(1, keepdim=True).clamp(
            min=1
        )
        of_all = mean.masked_fill(~real, 0).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(
            min=1
        )
        above = real & (mean > of_all)
        above = torch.where(above.any(1, keepdim=True), above, real)
        raters = marked(torch.where(above, place, -1), seen.image.shape[1])
        return torch.where(text.any(1, keepdim=True), raters, marked(seen.asking, raters.shape[1]))

    def rate(self, view: LayerView, raters: Tensor, most: int) -> Tensor:
        """Float32 `[B, S]`: mean attention of at most `most` raters `[B, S]` a row."""
        number = raters.sum(1)
        first = torch.where(raters, 0, -1)
        rows = places(raters.cumsum(1) - 1, first, 1, max(most, 1)).squeeze(1)
        each_row = view.attention(rows, "before", mean=self.heads is None)  # [B, (H,) R, S]
        if self.unbias:
            bias = view.positional(rows, "before")
            bias = bias if self.heads is None else bias[:, None]
            each_row = torch.where(bias > 0, each_row / bias, 0)
        if self.heads is None:
            return each_row.sum(1) / number.clamp(min=1)[:, None]
        each = each_row.sum(2) / number.clamp(min=1)[:, None, None]
        looks = each.masked_fill(view.seen.image[:, None] < 0, 0).sum(2)
        among = segmented_topk(looks, torch.full_like(number, self.heads))[1]
        return (each * among[..., None]).sum(1) / among.sum(1, keepdim=True)

    # -- what stays --------------------------------------------------------------------------

    def sets(self, view: LayerView) -> Sets:
        """The tokens that stay as they are, and the clusters."""
        seen = view.seen
        assert seen.marks is not None
        group, counts = self.groups(seen)
        best, number = self._wanted(seen, group, counts)
        recycled = torch.where(number > 0, recycled_of(tokens_of(group, counts) - best), 0)
        raters = seen.marks[..., 0] > 0
        most = to_host(torch.stack([raters.sum(1).amax(), recycled.amax()])).tolist()
        score = self.rate(view, raters, most[0])
        rank = rank_within(score, group.clamp(min=0), counts.shape[1], group >= 0)
        nth = rank - of_group(best, group)
        kept = (group >= 0) & (nth < 0)
        again = torch.where(nth < of_group(recycled, group), group, -1)
        members = places(nth, again, counts.shape[1], most[1]).flatten(0, 1)
        if not most[1]:
            return Sets(kept, members, members, members)
        row = torch.arange(len(members), device=members.device) // counts.shape[1]
        tokens = view.hidden[row[:, None], members.clamp(min=0)]
        number = number.flatten()
        return Sets(kept, members, *clusters(tokens, members >= 0, number, number))

    def choose(self, view: LayerView) -> Choice:
        seen, sets = view.seen, self.sets(view)
        asked = (seen.asking >= 0).any(1, keepdim=True)
        keep = (seen.image < 0) | sets.kept
        if not sets.members.shape[1]:
            return Choice(seen.valid & (keep | ~asked))
        batch, size = seen.image.shape
        real = sets.members >= 0
        number = torch.zeros_like(sets.members).scatter_add(1, sets.centre, real.long())
        weight = real / (number.gather(1, sets.centre) + 1e-6)
        row = torch.arange(len(real), device=real.device) // (len(real) // batch) * size
        source = row[:, None] + sets.members.clamp(min=0)
        output = source.gather(1, sets.centre)
        flat = view.hidden.flatten(0, 1)
        entries = output.flatten(), source.flatten(), weight.flatten()
        merged = weighted_merge(flat, *entries, num_outputs=len(flat))
        own = torch.arange(real.shape[1], device=real.device)
        places_of = torch.where(real & (sets.centre == own), sets.members, -1)
        centre = marked(places_of.unflatten(0, (batch, -1)).flatten(1), size) & asked
        values = torch.where(centre[..., None], merged.view_as(view.hidden), view.hidden)
        return Choice(seen.valid & (keep | centre | ~asked), values)


def recycled_of(dropped: Any) -> Any:
    """How many of the tokens that were dropped go into clusters, `int(0.3 n) + 1`."""
    return 3 * dropped // 10 + 1


def clusters_of(dropped: Any) -> Any:
    """How many clusters they make, `int(n / 10) + 1` of what is recycled."""
    return recycled_of(dropped) // 10 + 1
