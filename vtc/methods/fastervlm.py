"""FasterVLM: the patches that CLS attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.batch import ImageBatch
from vtc.methods import _fields
from vtc.methods.cls_guided import ClsGuided
from vtc.methods.scored import Scored
from vtc.registry import register_method


@register_method
@dataclass
class FasterVLM(ClsGuided, Scored):
    """Keeps the patches with the most CLS attention: the plain attention baseline of every table.

    The official code gives every tile the same number, padding among the candidates, so that fewer are
    left once it is cut; here tiles share the budget by what they hold, and padding takes no part.

    Paper: Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make
    VLM Inference Faster" (arXiv 2412.01818v1).
    Code: Theia-4869/FasterVLM at f5d5f12 (Apache-2.0); written from the maths.

    Attributes:
        scope: "tile". Tiles share the budget and each keeps its best [code, but for the shares], or
            the best of the whole "image" [ours].
    """

    scope: str = "tile"  # type: ignore[assignment, misc]

    name: ClassVar[str] = "fastervlm"
    paper: ClassVar[str] = "arXiv 2412.01818v1"

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.one_of("scope", self.scope, ("tile", "image"))

    def score(self, batch: ImageBatch) -> Tensor:
        return self.attention(batch)
