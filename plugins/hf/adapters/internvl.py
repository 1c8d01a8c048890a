"""InternVL: crops, then a thumbnail; squares of patches fused into a token."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.model import families
from vtc.plugins.model.units import Unit, grouped, square


@register_adapter("InternVLForConditionalGeneration", "InternVLModel")
class InternVL(Adapter):
    """Its tower sees one picture after the other."""

    fuses: ClassVar[str] = "which fuses squares of patches"

    def units(self, call: Call) -> list[Unit]:
        return families.internvl(call)

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        tiles, tokens = call.output.pooler_output.shape[:2]
        side = square(len(values) // tiles)[0]
        return grouped(values, side, side // square(tokens)[0])
