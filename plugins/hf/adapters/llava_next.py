"""LLaVA-NeXT, its video model and LLaVA-OneVision: crops on an un-padded canvas, or a clip."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vtc.functional.anyres import shrunk_canvas, tile_grid, valid_region
from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.model.units import Unit, grouped, on_grid, square


@register_adapter("LlavaNextForConditionalGeneration", "LlavaNextModel")
class LlavaNext(Adapter):
    """A thumbnail, crops on an un-padded canvas, a newline behind every canvas row."""

    def units(self, call: Call) -> list[Unit]:
        config = call.base.config
        pinpoints = [tuple(p) for p in config.image_grid_pinpoints]
        tile_size, grid = config.vision_config.image_size, (self.side(call.base),) * 2
        out = []
        sizes = torch.as_tensor(call.kwargs["image_sizes"]).tolist()
        for size, cropped in zip(map(tuple, sizes), self.cropped(call, len(sizes)), strict=True):
            crops = tile_grid(size, pinpoints, tile_size) if cropped else None
            tiles = 1 if crops is None else 1 + crops[0] * crops[1]
            out.append(self.image(call, Unit(tiles, grid, crops, size, "hf", newline=True)))
        return out

    def cropped(self, call: Call, images: int) -> list[bool]:
        """Whether each image has crops."""
        return [True] * images

    def image(self, call: Call, unit: Unit) -> Unit:
        """The unit of one image."""
        return unit


@register_adapter("LlavaNextVideoForConditionalGeneration", "LlavaNextVideoModel")
class LlavaNextVideo(LlavaNext):
    """Frames of a clip are pooled before the projector, and have no newline."""

    def fit(self, base: nn.Module, modality: str) -> str:
        return "crop" if modality == "video" else "stretch"

    def units(self, call: Call) -> list[Unit]:
        if call.modality == "image":
            return super().units(call)
        clips, frames = call.pixels.shape[:2]
        grid = square(call.record.projector_output.shape[1])
        return [Unit(frames, grid)] * clips

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        if call.modality == "image":
            return values
        return grouped(values, self.side(call.base), call.base.config.spatial_pool_stride)


@register_adapter("LlavaOnevisionForConditionalGeneration", "LlavaOnevisionModel")
class LlavaOnevision(LlavaNextVideo):
    """Large canvases are scaled down; several images of a prompt have no crops; clips are scaled
    down behind the projector and have one newline at their end."""

    def fit(self, base: nn.Module, modality: str) -> str:
        return "stretch"

    def cropped(self, call: Call, images: int) -> list[bool]:
        counts = call.kwargs.get("batch_num_images")
        if counts is None:
            return [True] * images
        return [count == 1 for count in torch.as_tensor(counts).tolist() for _ in range(count)]

    def image(self, call: Call, unit: Unit) -> Unit:
        if unit.tile_grid is None:
            return unit
        ratio = call.kwargs.get("vision_aspect_ratio") or call.base.config.vision_aspect_ratio
        limit = int(ratio.rsplit("_", 1)[-1])
        side = unit.patch_grid[0]
        canvas = unit.tile_grid[0] * side, unit.tile_grid[1] * side
        top, bottom, left, right = valid_region(unit.image_size, canvas, unit.unpad)
        shrunk = shrunk_canvas((bottom - top, right - left), side, limit) is not None
        return replace(unit, shrink=limit, fused=True) if shrunk else unit

    def units(self, call: Call) -> list[Unit]:
        units = super().units(call)
        if call.modality == "image":
            return units
        side = -(-self.side(call.base) // 2)
        return [replace(u, patch_grid=(side, side), newline=True, fused=True) for u in units]

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        if call.modality == "image":
            return values
        side = self.side(call.base)
        size = (-(-side // 2),) * 2
        return on_grid(values, side, lambda x: nn.functional.interpolate(x, size, mode="bilinear"))
