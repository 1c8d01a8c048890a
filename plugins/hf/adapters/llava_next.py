"""LLaVA-NeXT: a thumbnail, crops on an un-padded canvas, a newline behind every canvas row."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.functional.anyres import tile_grid
from vtc.plugins.hf.adapters.base import Adapter, Unit, register_adapter


@register_adapter("LlavaNextForConditionalGeneration", "LlavaNextModel")
class LlavaNext(Adapter):
    unpad: ClassVar[str] = "hf"

    def newline(self, base: nn.Module) -> Tensor | None:
        return base.image_newline

    def units(self, base: nn.Module, kwargs: dict[str, Any], tiles: int) -> list[Unit]:
        pinpoints = [tuple(p) for p in base.config.image_grid_pinpoints]
        tile_size = base.config.vision_config.image_size
        out, start = [], 0
        for height, width in torch.as_tensor(kwargs["image_sizes"]).tolist():
            grid = tile_grid((height, width), pinpoints, tile_size)
            stop = start + 1 + grid[0] * grid[1]
            out.append(Unit(slice(start, stop), grid, (height, width)))
            start = stop
        return out
