"""VScan inside the language model: in the middle of it, what the last token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from vtc.layers import Choice, LayerView
from vtc.methods.layer_method import OneCut, Share
from vtc.registry import register_method


@register_method
@dataclass
class VScanLayers(OneCut):
    """Keeps the third of the image tokens that the last token of the prompt attends to most, in the
    middle of the language model.

    As PyramidDrop with one cut: the attention is that of the layer behind the cut, mean over heads,
    behind the softmax over all tokens.

    This is the second half of the method; `["vscan", "vscan_layers"]` is the whole. The paper's "64"
    is `tokens=96` of the first half, of which a third are 32.

    Paper: Zhang et al., "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language
    Models" (arXiv 2505.22654, TMLR 2026).
    Code: Tencent/SelfEvolvingAgent at a82450e, folder VScan (MIT); written from the maths.
    """

    name: ClassVar[str] = "vscan_layers"
    paper: ClassVar[str] = "arXiv 2505.22654"
    paper_layers: ClassVar[tuple[int, ...]] = (16,)

    def shares(self) -> tuple[Share, ...]:
        return (Fraction(1, 3),)

    def choose(self, view: LayerView) -> Choice:
        return self.by_attention(view, "here")
