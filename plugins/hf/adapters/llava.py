"""LLaVA-1.5, VipLLaVA and Pixtral: one tile an image, no separators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.hf.typing import Model
from vtc.plugins.model import families
from vtc.plugins.model.signals import token_pixels
from vtc.plugins.model.units import Unit


@register_adapter(
    "LlavaForConditionalGeneration",
    "LlavaModel",
    "VipLlavaForConditionalGeneration",
    "VipLlavaModel",
)
class Llava(Adapter):
    """Features are one hidden state, or several side by side, behind an MLP.

    A Pixtral tower takes images of any size and packs them into one sequence.
    """

    def fit(self, base: Model, modality: str) -> str:
        # CLIP's processor cuts a square from the middle, SigLIP's squashes
        return "crop" if self.has_cls(base) else "stretch"

    def units(self, call: Call) -> list[Unit]:
        return families.llava(call)

    def token_pixels(self, call: Call, units: Sequence[Unit]) -> Tensor:
        if call.kwargs.get("image_sizes") is None:
            return super().token_pixels(call, units)
        patch = self.tower(
            call.base
        ).patch_size  # Pixtral: the batch is padded to its largest image
        parts = [
            token_pixels(self.pixels(call, units, index), unit.patch_grid, (patch, patch))[0]
            for index, unit in enumerate(units)
        ]
        return torch.cat(parts)
