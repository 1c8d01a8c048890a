"""SCOPE: patches that cover what is not covered yet, the salient first."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from vtc.batch import ImageBatch
from vtc.functional.greedy import cosines
from vtc.methods import _fields
from vtc.methods.greedy import Greedy, Picks
from vtc.registry import register_method
from vtc.tokens import SignalRequest


@register_method
@dataclass
class Scope(Greedy):
    """Keeps the patches that resemble most what the kept ones do not, weighted by CLS attention.

    A patch i is covered by a set as well as its largest cosine to one of them, 0 at least. Each pick is
    the patch j with the largest `w_j ** alpha * (gain in cover of all patches)`, w its CLS attention in
    the layer that the features come from. Before the projector; where a projector fuses patches, on
    the tokens behind it.

    The official code divides one number among all tiles of a call, so that images change each other's
    budgets; here tiles of an image share its budget [ours]. Its additive variant is not here: no script
    uses it.

    Towers without CLS: the attention each patch receives, which the official code leaves open and
    AngelSlim's port uses.

    Paper: Deng et al., "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs"
    (arXiv 2510.24214, NeurIPS 2025). Code: kinredon/SCOPE at 6bf7306, no licence at its root; this is
    written from the maths.

    Attributes:
        alpha: 1.0. Power of the attention [code]; 0 is cover alone.
        layer: "read". Layer of the attention [code].
        scope: "tile". Patches cover their tile [code], or their whole "image" [ours], up to 4,096.
    """

    alpha: float = 1.0
    layer: int | float | str = "read"
    scope: str = dataclasses.field(default="tile", kw_only=True)

    name: ClassVar[str] = "scope"
    paper: ClassVar[str] = "arXiv 2510.24214"
    stage: ClassVar = "vision"
    pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.number("alpha", self.alpha, 0)
        _fields.layer("layer", self.layer)

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        kind = "cls_attention" if has_cls else self.without_cls["cls_attention"]
        return {"saliency": SignalRequest(kind, self.layer)}

    def pick(self, batch: ImageBatch) -> Picks:
        among = self.candidates(batch)
        saliency = among.of(batch.signal("saliency").float()) ** self.alpha
        likeness = cosines(among.of(batch.features), among.valid)
        return among.pick("cover", likeness, saliency)
