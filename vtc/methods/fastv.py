"""FastV: behind the second layer half of the image tokens do, the most attended ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtc.layers import Choice, LayerView
from vtc.methods.layer_method import OneCut, Share
from vtc.registry import register_method


@register_method
@dataclass
class FastV(OneCut):
    """Keeps the image tokens that the last token of the prompt attends to most, once, early on.

    In front of layer K the attention of layer K - 1 is read: its mean over heads in the row of the last
    token, behind the softmax over all tokens, text too. Without a budget half of the tokens stay,
    rounded half to even; the paper's R is the share that goes, 1 - `layer_retention`. Later steps of
    decoding keep the choice.

    The official code takes row 0's ranks for a whole batch, and without a cache it chooses anew at
    every step; this does neither. Under labels the mean over the tokens in front of answers takes the
    place of the last token [ours].

    Paper: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration
    for Large Vision-Language Models" (arXiv 2403.06764, ECCV 2024).
    Code: pkunlp-icler/FastV@d165972 (no licence of its own); written from the maths.
    """

    name: ClassVar[str] = "fastv"
    paper: ClassVar[str] = "arXiv 2403.06764"
    paper_layers: ClassVar[tuple[int, ...]] = (2,)
    reads_before: ClassVar[bool] = True

    def shares(self) -> tuple[Share, ...]:
        return (0.5,)

    def rounded(self, tokens: int, share: Share) -> int:
        return round(tokens * share)

    def choose(self, view: LayerView) -> Choice:
        return self.by_attention(view, "before")
