"""CDPruner: patches that differ from each other and fit the question, by a DPP."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.batch import ImageBatch
from vtc.methods import _fields
from vtc.methods._relevance import check_fields, relevance, relevance_requests
from vtc.methods.asks_text import AsksText
from vtc.methods.greedy import Greedy, Picks
from vtc.registry import register_method
from vtc.tokens import SignalRequest


@register_method
@dataclass
class CDPruner(AsksText, Greedy):
    """Keeps the set of patches of largest volume, each as long as it is relevant to the question.

    Every pick is the patch with the largest `relevance ** 2 * (what the picks do not span of it)`, by
    the features that the language model reads: the greedy most likely set of a DPP with the kernel
    `relevance_i * cosine_ij * relevance_j`. Relevance is the mean cosine of a patch with the pieces of
    the question, scaled to [0, 1] over the image.

    In the space of CLIP the cosine is *negated*: there patches and text that belong together are less
    alike than others, as the authors found (issues 9 and 14); the paper's formula has no minus. The
    official code scales over a whole batch, so that images change each other, divides by zero where all
    patches are equally relevant, and gives NaN beyond the rank of the features. Here every image is
    scaled by itself, and what adds no volume follows by relevance [ours].

    Paper: Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token
    Pruning in MLLMs" (arXiv 2506.10967, NeurIPS 2025). Code: Theia-4869/CDPruner at 9541616, Apache-2.0.

    Attributes:
        text_score: "aligned". Relevance in the space that image and text share, by pieces of 77 tokens
            [code]; "similarity" compares features with the question's tokens as the language model reads
            both, and needs no text tower [ours].
        sign: "auto". Negated cosine for "aligned", plain one for "similarity"; or "negative" [code] or
            "positive" [paper] for either.
        layer: "read". Layer whose hidden states are projected into the shared space, behind the tower's
            final norm [code].
        scope: "tile". A tile's patches are one set [code], or those of the whole "image" [ours].
    """

    text_score: str = "aligned"
    sign: str = "auto"
    layer: int | float | str = "read"
    scope: str = dataclasses.field(default="tile", kw_only=True)

    name: ClassVar[str] = "cdpruner"
    paper: ClassVar[str] = "arXiv 2506.10967"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self.text_score, self.sign)
        _fields.layer("layer", self.layer)

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        return relevance_requests(self.text_score, self.layer)

    def relevance(self, batch: ImageBatch) -> Tensor:
        """Float32 `[S, N]`, from 0 to 1 over each image."""
        return relevance(batch, self.text_score, self.sign)

    def pick(self, batch: ImageBatch) -> Picks:
        among = self.candidates(batch)
        return among.pick("dpp", among.of(batch.features), among.of(self.relevance(batch)))
