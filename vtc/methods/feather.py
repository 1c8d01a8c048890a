"""FEATHER: attention without position, and an even grid beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.functional.ragged import to_device
from vtc.layers import Choice, LayerView, Seen
from vtc.methods import _fields
from vtc.methods._layers import best_of, tokens_of
from vtc.methods.layer_method import SeveralCuts, Share
from vtc.registry import register_method


@register_method
@dataclass
class Feather(SeveralCuts):
    """Keeps the image tokens that the last token of the prompt attends to most, rotary embedding left
    out, and an even grid of the picture beside them; later by attention alone.

    Attention with rotary embedding prefers the bottom of a picture, which stands nearest to the
    question. So queries and keys of layer K - 1 are taken without it; softmax over the image tokens
    alone, mean over heads. Without a budget the first cut leaves the best `attended` united with every
    `stride`-th row and column of a tile, and the second the best `attended` squared of what is left, all
    rounded down: how many that is hangs on the picture, and `counts` gives the expected number. With a
    budget the grid comes first and the best of the others fill up [ours].

    Paper: Endo et al., "Feather the Throttle: Revisiting Visual Token Pruning for Vision-Language Model
    Acceleration" (arXiv 2412.13180, ICCV 2025).
    Code: markendo/FEATHER@c2a09b2 (MIT); written from the maths.

    Attributes:
        attended: 0.3. Share that stays by attention, in (0, 1), without a budget [code: 1 -
            `fastv_ratio`].
        stride: 3. Rows and columns from one place of the grid to the next [code].
    """

    attended: float = 0.3
    stride: int = 3

    name: ClassVar[str] = "feather"
    paper: ClassVar[str] = "arXiv 2412.13180"
    paper_layers: ClassVar[tuple[int, ...]] = (8, 16)
    reads_before: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _fields.number("attended", self.attended, 0, 1)
        _fields.whole("stride", self.stride, 1)
        if not 0 < self.attended < 1:
            raise VTCError(f"attended: got {self.attended!r}, allowed are numbers in (0, 1)")
        super().__post_init__()

    def shares(self) -> tuple[Share, ...]:
        united = self.attended + (1 - self.attended) / self.stride**2
        return min(united, 0.99), min(united, 0.99) * self.attended**2

    def choose(self, view: LayerView) -> Choice:
        seen = view.seen
        image = seen.image >= 0
        score, asked = self.attention_asked(view, "before", rotary=False, among=image)
        grid = image & (seen.place[..., 1:] % self.stride == 0).all(-1) & (seen.cut == 0)
        if self.counts_itself:
            group, counts = self.groups(seen)
            keep = seen.valid & (
                ~image | grid | best_of(score, group, self._attended(seen, counts))
            )
        else:
            keep = self.best(seen, score + grid)  # probabilities are at most 1
        return Choice(torch.where(asked, keep, seen.valid))

    def _attended(self, seen: Seen, counts: Tensor) -> Tensor:
        """Long `[B, G]`: how many of what is left of each group stay by attention."""
        group, _ = self.groups(seen)
        here = tokens_of(group, counts)
        share = self.attended if seen.cut == 0 else self.attended * self.attended
        kept = [int(tokens * share) for tokens in range(group.shape[1] + 1)]
        return to_device(kept, counts)[here]
