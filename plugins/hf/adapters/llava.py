"""LLaVA-1.5, VipLLaVA and Pixtral: one tile an image, no separators."""

from __future__ import annotations

from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.hf.typing import Model
from vtc.plugins.model import families
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
