"""LLaVA-NeXT, its video model and LLaVA-OneVision: crops on an un-padded canvas, or a clip."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.hf.typing import Model
from vtc.plugins.model import families
from vtc.plugins.model.smaller.crops import THUMBNAIL
from vtc.plugins.model.units import Unit, grouped, on_grid


class AnyRes(Adapter):
    """Crops on a canvas that goes by the size of the picture."""

    def encoder(self, base: Model, kwargs: Mapping[str, Any]) -> Model:
        """Where a picture has been left with its thumbnail alone, a shallow copy of the model that
        knows a canvas without crops; the modules are the same."""
        sizes = kwargs.get("image_sizes")
        if sizes is None or list(THUMBNAIL) not in torch.as_tensor(sizes).tolist():
            return base
        twin = copy.copy(base)
        twin.config = copy.copy(base.config)
        twin.config.image_grid_pinpoints = [*base.config.image_grid_pinpoints, [0, 0]]
        return twin


@register_adapter("LlavaNextForConditionalGeneration", "LlavaNextModel")
class LlavaNext(AnyRes):
    """A thumbnail, crops on an un-padded canvas, a newline behind every canvas row."""

    def units(self, call: Call) -> list[Unit]:
        return families.llava_next(call)


@register_adapter("LlavaNextVideoForConditionalGeneration", "LlavaNextVideoModel")
class LlavaNextVideo(AnyRes):
    """Frames of a clip are pooled before the projector, and have no newline."""

    def fit(self, base: Model, modality: str) -> str:
        return "crop" if modality == "video" else "stretch"

    def units(self, call: Call) -> list[Unit]:
        return families.llava_next_video(call)

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        if call.modality == "image":
            return values
        return grouped(values, self.side(call.base), call.base.config.spatial_pool_stride)


@register_adapter("LlavaOnevisionForConditionalGeneration", "LlavaOnevisionModel")
class LlavaOnevision(AnyRes):
    """Large canvases and clips are scaled down behind the projector."""

    def units(self, call: Call) -> list[Unit]:
        return families.llava_onevision(call)

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        if call.modality == "image":
            return values
        side = self.side(call.base)
        size = (-(-side // 2),) * 2
        return on_grid(values, side, lambda x: nn.functional.interpolate(x, size, mode="bilinear"))
