"""Idefics3 and SmolVLM: crops with tags between them, then a thumbnail; squares of patches fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import transformers
from torch import Tensor

from vtc.errors import VTCError
from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.hf.typing import Model
from vtc.plugins.model import families
from vtc.plugins.model.units import Unit, grouped, square


@register_adapter(
    "Idefics3ForConditionalGeneration",
    "Idefics3Model",
    "SmolVLMForConditionalGeneration",
    "SmolVLMModel",
)
class Idefics3(Adapter):
    fuses: ClassVar[str] = "which fuses squares of patches"

    def check(self, base: Model) -> None:
        super().check(base)
        if type(base).__name__ == "SmolVLMModel" and not hasattr(base, "get_placeholder_mask"):
            raise VTCError(
                f"transformers: {transformers.__version__} is installed, whose SmolVLM takes whole "
                "tiles only; 5.23 is known to work"
            )

    def units(self, call: Call) -> list[Unit]:
        return families.idefics3(call)

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        tokens = call.base.image_seq_len
        factor = call.base.connector.scale_factor
        return grouped(values, square(tokens * factor**2)[0], factor)

    def pixels(self, call: Call, units: Sequence[Unit], index: int) -> Tensor:
        start = sum(unit.tiles for unit in units[:index])
        return families.real_tiles(call.pixels)[start : start + units[index].tiles]
