"""PyramidDrop: half of the image tokens go at each quarter of the language model's depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtc.errors import VTCError
from vtc.layers import Choice, LayerView
from vtc.methods import _fields
from vtc.methods.layer_method import SeveralCuts, Share
from vtc.registry import register_method


@register_method
@dataclass
class PyramidDrop(SeveralCuts):
    """Keeps the image tokens that the last token of the prompt attends to most, fewer at every stage.

    In front of layer K the queries and keys of layer K itself are made from what would enter it, and its
    attention is read: the mean over heads in the row of the last token, behind the softmax over all
    tokens. Without a budget 1/2, 1/4 and 1/8 of an image's tokens stay, rounded down, 46.9 % on average.
    Under labels the mean over the tokens in front of answers takes the last token's place, and a row
    without an answer is left whole.

    Positions stay those of the whole prompt. The official code numbers what is left afresh, for its
    scores as well; it takes one image a row, right padding, and no grouped keys.

    Paper: Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
    Redundancy Reduction" (arXiv 2410.17247, CVPR 2025).
    Code: Cooperx521/PyramidDrop@6444f30 (MIT); written from the maths.

    Attributes:
        ratios: (0.5, 0.25, 0.125). Share of an image's tokens behind each cut, falling, without a
            budget; a budget bends it [code: `image_token_ratio_list`].
    """

    ratios: Sequence[float] = (0.5, 0.25, 0.125)

    name: ClassVar[str] = "pyramiddrop"
    paper: ClassVar[str] = "arXiv 2410.17247"
    paper_layers: ClassVar[tuple[int, ...]] = (8, 16, 24)

    def __post_init__(self) -> None:
        falling = list(self.ratios) if isinstance(self.ratios, (list, tuple)) else []
        for ratio in falling:
            _fields.number("ratios", ratio, 0, 1)
        if (
            not falling
            or not 1 > falling[0]
            or falling[-1] <= 0
            or falling != sorted(falling)[::-1]
        ):
            raise VTCError(f"ratios: got {self.ratios!r}, allowed are falling numbers in (0, 1)")
        super().__post_init__()

    def shares(self) -> tuple[Share, ...]:
        return tuple(self.ratios)

    def choose(self, view: LayerView) -> Choice:
        return self.by_attention(view, "here")
