"""Cohere2 Vision (Command A Vision): crops, then a thumbnail; squares of patches fused into a token."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.model import families
from vtc.plugins.model.units import Unit, grouped


@register_adapter("Cohere2VisionForConditionalGeneration", "Cohere2VisionModel")
class Cohere2Vision(Adapter):
    fuses: ClassVar[str] = "which fuses squares of patches"

    def units(self, call: Call) -> list[Unit]:
        return families.cohere2_vision(call)

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        return grouped(values, self.side(call.base), call.config.downsample_factor)
