"""DART: what is least like a few pivots stays, whatever attention says."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.functional.windows import rank_within
from vtc.layers import Choice, LayerView
from vtc.methods import _fields
from vtc.methods._layers import best_of, marked, of_group, places, question, tokens_of
from vtc.methods.layer_method import OneCut, Share
from vtc.registry import register_method


@register_method
@dataclass
class Dart(OneCut):
    """Keeps a few image tokens as pivots, and for each pivot the image tokens that are least like it.

    Pivots are the image tokens, and the tokens of the question, with the largest keys in layer K - 1:
    the L1 norm over all heads, rotary embedding applied. In turn, image pivots first and each kind by
    falling norm, every pivot takes the same number of those left that have the smallest cosine with it,
    in the hidden states behind the language model's final norm. Pivots of the text are not counted.

    Without a budget four image pivots stay and a 36th of an image's tokens for each of eight pivots,
    rounded down: the paper's "128" is 132 of 576. What a budget leaves over goes to the first pivots.

    The official loop walks a Python set, so that the order of its pivots hangs on hashes; and it asks
    for one row. The question is the text behind the last image of a row.

    Paper: Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication
    Matters More" (arXiv 2502.11494, EMNLP 2025).
    Code: ZichenWen1/DART, read in xqy1111111/DART@d6a5af6 (Apache-2.0); written from the maths.

    Attributes:
        pivot_image: 4. Pivots among an image's tokens [code].
        pivot_text: 4. Pivots among the question's tokens [code].
    """

    pivot_image: int = 4
    pivot_text: int = 4

    name: ClassVar[str] = "dart"
    paper: ClassVar[str] = "arXiv 2502.11494"
    paper_layers: ClassVar[tuple[int, ...]] = (2,)
    reads_before: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.whole("pivot_image", self.pivot_image, 1)
        _fields.whole("pivot_text", self.pivot_text, 0)

    def shares(self) -> tuple[Share, ...]:
        return (Fraction(2, 9),)

    def rounded(self, tokens: int, share: Share) -> int:
        if share == 1:
            return tokens
        pivots = self.pivot_image + self.pivot_text
        return min(tokens, self.pivot_image + pivots * int(tokens * share / pivots))

    def pivots(self, view: LayerView) -> Tensor:
        """Long `[B, G, P]`: columns of each group's pivots in the order of their turns, -1 for none."""
        seen = view.seen
        group, counts = self.groups(seen)
        norm = view.heads("before").key.float().abs().sum((1, 3))
        rank = rank_within(norm, group.clamp(min=0), counts.shape[1], group >= 0)
        allowed = of_group(counts, group)  # no more pivots than tokens that may stay
        of_image = torch.where(rank < allowed, rank, -1)
        images = places(of_image, group, counts.shape[1], self.pivot_image)
        text = question(seen)
        rank = rank_within(norm, torch.zeros_like(group), 1, text)
        texts = places(rank, torch.where(text, 0, -1), 1, self.pivot_text)
        return torch.cat([images, texts.expand(-1, counts.shape[1], -1)], 2)

    def choose(self, view: LayerView) -> Choice:
        seen = view.seen
        group, counts = self.groups(seen)
        pivots = self.pivots(view)
        taken = marked(pivots.flatten(1), group.shape[1]) & (group >= 0)
        turns = pivots >= 0
        left = counts - tokens_of(torch.where(taken, group, -1), counts)
        number = turns.sum(2)
        each, over = left // number.clamp(min=1), left % number.clamp(min=1)
        share = each[..., None] + (turns.cumsum(2) <= over[..., None])  # of a turn
        share = torch.where(turns, share, 0)
        like = self._likeness(view.normed(), pivots, group)
        for turn in range(pivots.shape[2]):
            free = torch.where(taken, -1, group)
            taken = taken | best_of(-like[:, turn], free, share[..., turn])
        whole = (counts >= tokens_of(group, counts)) | (number == 0)
        keep = (group < 0) | taken | of_group(whole, group)
        return Choice(seen.valid & keep)

    @staticmethod
    def _likeness(states: Tensor, pivots: Tensor, group: Tensor) -> Tensor:
        """Float32 `[B, P, S]`: cosine of each token with the pivots of its own group."""
        unit = normalize(states.float(), dim=-1)
        columns = pivots.clamp(min=0).flatten(1)
        rows = unit.gather(1, columns[..., None].expand(-1, -1, unit.shape[2]))
        like = (rows @ unit.mT).unflatten(1, pivots.shape[1:])  # [B, G, P, S]
        own = group.clamp(min=0)[:, None, None].expand(-1, 1, pivots.shape[2], -1)
        return like.gather(1, own).squeeze(1)
