"""DivPrune: the patches that are farthest from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtc.batch import ImageBatch
from vtc.methods.greedy import Greedy, Picks
from vtc.registry import register_method


@register_method
@dataclass
class DivPrune(Greedy):
    """Keeps a diverse set: every pick is the patch farthest from the nearest patch picked before.

    Distance is 1 - cosine of the features that the language model reads. The first pick is the patch
    that is farthest from its nearest neighbour. It looks at no attention and at no question, so it works
    on every tower and with any attention kernel.

    The official code lets newlines compete and may lose them, picks a patch twice once only duplicates
    are left, and ranks the first image of a batch for all. Here newlines stay and do not compete, nobody
    is picked twice, and every image is ranked by itself [ours].

    Paper: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models"
    (arXiv 2503.02175, CVPR 2025). Code: vbdi/divprune at 799e2d9, CC BY-NC 4.0; this is written from
    the maths. It keeps 0.098 of the tokens by default, by `round`; here budgets round down.

    Attributes:
        scope: "image". All tiles of an image are one set [code], or each "tile" is one [ours].
    """

    name: ClassVar[str] = "divprune"
    paper: ClassVar[str] = "arXiv 2503.02175"

    def pick(self, batch: ImageBatch) -> Picks:
        among = self.candidates(batch)
        return among.pick("distance", among.of(batch.features))
