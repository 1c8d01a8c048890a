"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and its MoE: grids of any size, four patches in a token, clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from einops import rearrange
from torch import Tensor

from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.model import families, fusing
from vtc.plugins.model.units import Unit


@register_adapter(
    "Qwen2VLForConditionalGeneration",
    "Qwen2VLModel",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2_5_VLModel",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLModel",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3VLMoeModel",
)
class QwenVL(Adapter):
    """The tower sees all images as one sequence in which the patches of a token are neighbours.

    Qwen2.5 also puts tokens in window order; what it packs is back in raster order.
    """

    windows: ClassVar[bool] = True
    fuses: ClassVar[str] = "which fuses squares of patches"

    def grids(self, call: Call) -> Tensor:
        """`(frames, rows, cols)` of patches of every image or clip."""
        return call.kwargs[f"{call.modality}_grid_thw"]

    def units(self, call: Call) -> list[Unit]:
        return families.qwen_vl(call)

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        return fusing.qwen_vl(call.base.config, self.units(call), values)

    def pixels(self, call: Call, units: Sequence[Unit], index: int) -> Tensor:
        sizes = self.grids(call).prod(-1).tolist()
        return call.pixels.split(sizes)[index]

    def token_pixels(self, call: Call, units: Sequence[Unit]) -> Tensor:
        config = self.tower(call.base).config
        # of a temporal patch the first frame; the patches of a token follow each other
        return rearrange(
            call.pixels,
            "(n m) (c f v) -> n f (m c v)",
            m=config.spatial_merge_size**2,
            c=config.in_channels,
            f=config.temporal_patch_size,
        )[:, 0]
