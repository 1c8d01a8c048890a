"""PaliGemma and Gemma3: one tile an image; Gemma3's projector averages squares of patches."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.model import families
from vtc.plugins.model.units import Unit, grouped


@register_adapter("PaliGemmaForConditionalGeneration", "PaliGemmaModel")
class PaliGemma(Adapter):
    """Positions are counted from 1, by `generate` itself but not in a plain forward."""

    first_position: ClassVar[int] = 1
    wants_new_cache: ClassVar[bool] = True

    def blocks(self, types: Tensor) -> Tensor:
        return torch.where(types == 0, 0, -1)  # the prefix


@register_adapter("Gemma3ForConditionalGeneration", "Gemma3Model")
class Gemma3(Adapter):
    fuses: ClassVar[str] = "which averages squares of patches"

    def units(self, call: Call) -> list[Unit]:
        return families.gemma3(call)

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        projector = call.base.multi_modal_projector
        return grouped(values, projector.patches_per_image, projector.kernel_size)

    def blocks(self, types: Tensor) -> Tensor:
        image = types == 1
        first = image & ~torch.nn.functional.pad(image[:, :-1], (1, 0), value=False)
        return torch.where(image, first.cumsum(1) - 1, -1)
