"""Video-LLaVA: two towers; the frames of a clip keep their CLS token."""

from __future__ import annotations

import inspect

import transformers
from torch import nn

from vtc.errors import VTCError
from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.model.units import Unit, square


@register_adapter("VideoLlavaForConditionalGeneration", "VideoLlavaModel")
class VideoLlava(Adapter):
    def fit(self, base: nn.Module, modality: str) -> str:
        return "crop"

    def tower(self, base: nn.Module, modality: str = "image") -> nn.Module:
        return base.video_tower if modality == "video" else base.image_tower

    def check(self, base: nn.Module) -> None:
        super().check(base)
        if "pixel_values" not in inspect.signature(base.get_image_features).parameters:
            raise VTCError(
                f"transformers: {transformers.__version__} is installed, whose Video-LLaVA names its "
                "pixels differently; 5.23 is known to work"
            )

    def units(self, call: Call) -> list[Unit]:
        if call.modality == "image":
            return super().units(call)
        clips, frames = call.pixels.shape[:2]
        grid = square(call.output.pooler_output.shape[1] - 1)
        return [Unit(frames, grid, lead=True)] * clips
