"""`ClsGuided`: what all methods have in common that go by the attention of CLS."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from vtc.batch import ImageBatch
from vtc.methods import _fields
from vtc.methods.base import Method
from vtc.tokens import SignalRequest


@dataclass
class ClsGuided(Method):
    """A method that ranks patches by how much CLS attends to them.

    Towers without CLS: the attention that each patch receives takes its place, as in the field's own
    ports to such towers; where a projector fuses patches it is the sum over the patches of a token.

    Attributes:
        layer: "read". Encoder layer of the attention: the one that the features come from, as in LLaVA
            the last but one [code].
    """

    layer: int | float | str = dataclasses.field(default="read", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.layer("layer", self.layer)

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        return {"attention": attention_request(self, has_cls, self.layer)}

    def attention(self, batch: ImageBatch) -> Tensor:
        """Float32 `[S, N]`: mean over heads, behind the softmax over all keys of a tile."""
        return batch.signal("attention").float()


def attention_request(method: Method, has_cls: bool, layer: int | float | str) -> SignalRequest:
    """The attention of CLS in a layer, or what stands in for it where the tower has none."""
    kind = "cls_attention"
    return SignalRequest(kind if has_cls else method.without_cls[kind], layer)
