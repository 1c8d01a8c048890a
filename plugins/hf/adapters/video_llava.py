"""Video-LLaVA: two towers; the frames of a clip keep their CLS token."""

from __future__ import annotations

import inspect

import transformers

from vtc.errors import VTCError
from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.hf.typing import Model
from vtc.plugins.model import families
from vtc.plugins.model.units import Unit


@register_adapter("VideoLlavaForConditionalGeneration", "VideoLlavaModel")
class VideoLlava(Adapter):
    def fit(self, base: Model, modality: str) -> str:
        return "crop"

    def tower(self, base: Model, modality: str = "image") -> Model:
        return base.video_tower if modality == "video" else base.image_tower

    def check(self, base: Model) -> None:
        super().check(base)
        if "pixel_values" not in inspect.signature(base.get_image_features).parameters:
            raise VTCError(
                f"transformers: {transformers.__version__} is installed, whose Video-LLaVA names its "
                "pixels differently; 5.23 is known to work"
            )

    def units(self, call: Call) -> list[Unit]:
        return families.video_llava(call)
