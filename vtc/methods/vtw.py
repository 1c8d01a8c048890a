"""VTW: from one layer on the language model goes without image tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from vtc.errors import VTCError
from vtc.layers import Choice, LayerView
from vtc.methods._layers import of_group
from vtc.methods.layer_method import OneCut
from vtc.registry import register_method


@register_method
@dataclass
class VTW(OneCut):
    """Drops all image tokens in front of one layer.

    Without a budget that is layer 15 of 32, 46.9 % on average. `retention` moves the layer: the deepest
    one whose average is no larger. `python -m vtc.eval.vtw_layer` searches the layer for a model as the
    paper does: the first one from 5 on at which the next token's distribution changes by no more than a
    threshold.

    Paper: Lin et al., "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid
    Inference" (arXiv 2405.05803, AAAI 2025).
    Code: lzhxmu/VTW@a3d8cfc (no licence); written from the maths.
    """

    name: ClassVar[str] = "vtw"
    paper: ClassVar[str] = "arXiv 2405.05803"
    paper_layers: ClassVar[tuple[int, ...]] = (15,)
    reads_question: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("tokens", "layer_retention"):
            value = getattr(self, field)
            if value is not None and not (field == "layer_retention" and value == 1):
                raise VTCError(
                    f"{field}: got {value!r}, but 'vtw' drops all tokens at one layer; move it with "
                    "`layer` or `retention`"
                )
        if isinstance(self.retention, (list, tuple)):
            raise VTCError(
                f"retention: got {self.retention!r}, but the layer of 'vtw' is the same for all images"
            )
        if self.retention is not None and self.ratio < 1 and self.layer is not None:
            raise VTCError(
                f"retention: got {self.retention!r} beside layer={self.layer!r}, from which the average "
                "of 'vtw' follows; give only one"
            )

    def cuts(self, depth: int) -> tuple[int, ...]:
        if self.retention is None or self.ratio == 1:
            return super().cuts(depth)
        layer = math.floor(self.ratio * depth + 1e-9)
        if layer < 1:
            raise VTCError(self._too_few(1, 1, depth))
        return (min(layer, depth - 1),)

    def counts(self, tokens: int, depth: int) -> tuple[int, ...]:
        whole = self.layer_retention == 1 or self.ratio == 1 and not self.counts_itself
        return (tokens,) if whole else (0,)

    def choose(self, view: LayerView) -> Choice:
        group, counts = self.groups(view.seen)  # none, or all at retention 1.0
        return Choice(view.seen.valid & ((group < 0) | (of_group(counts, group) > 0)))
