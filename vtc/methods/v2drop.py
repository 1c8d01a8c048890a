"""V2Drop: image tokens that a layer hardly changes go."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from torch import Tensor

from vtc.layers import Choice, LayerView
from vtc.methods.layer_method import SeveralCuts, Share
from vtc.registry import register_method


@register_method
@dataclass
class V2Drop(SeveralCuts):
    """Keeps the image tokens whose hidden states the layer in front of the cut changed most.

    The change is the Euclidean length of the difference between what leaves a layer and what entered
    it. No attention is read, and nothing of the question. Without a budget a half stays, then a
    quarter, then one token, rounded down.

    Paper: Chen et al., "Variation-aware Vision Token Dropping for Faster Large Vision-Language Models"
    (arXiv 2509.01552). Code: xuyang-liu16/V2Drop@89eddbb; written from the maths.
    """

    name: ClassVar[str] = "v2drop"
    paper: ClassVar[str] = "arXiv 2509.01552"
    paper_layers: ClassVar[tuple[int, ...]] = (3, 17, 22)
    reads_before: ClassVar[bool] = True
    reads_question: ClassVar[bool] = False

    def shares(self) -> tuple[Share, ...]:
        # the last one is a single token, of the 576 of LLaVA-1.5
        return (Fraction(1, 2), Fraction(1, 4), Fraction(1, 576))

    def published(self, tokens: int) -> tuple[int, ...]:
        return tokens // 2, tokens // 4, min(1, tokens // 4)

    def choose(self, view: LayerView) -> Choice:
        return Choice(self.best(view.seen, change(view.hidden, view.before)))


def change(after: Tensor, before: Tensor) -> Tensor:
    """Float32 `[B, S]`: how far each token moved, from two `[B, S, D]`."""
    return (after.float() - before.float()).norm(dim=-1)
