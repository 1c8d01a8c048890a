"""InternVL: crops, then a thumbnail; squares of patches fused into a token."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.model.mosaic import arrangement
from vtc.plugins.model.units import Unit, grouped, square


@register_adapter("InternVLForConditionalGeneration", "InternVLModel")
class InternVL(Adapter):
    """The call says nothing of the crops: how many an image has follows from its run of
    placeholders, and how they are arranged from comparing them with the thumbnail."""

    fuses: ClassVar[str] = "which fuses squares of patches"

    def units(self, call: Call) -> list[Unit]:
        tokens = call.output.pooler_output.shape[1]
        out, start = [], 0
        for _, _, length in call.runs:
            tiles = length // tokens
            pixels = call.pixels[start : start + tiles]
            crops = arrangement(pixels[:-1], pixels[-1]) if tiles > 1 else None
            grid = square(tokens)
            out.append(Unit(tiles, grid, crops, order="thumbnail_last", fused=True))
            start += tiles
        return out

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        tiles, tokens = call.output.pooler_output.shape[:2]
        side = square(len(values) // tiles)[0]
        return grouped(values, side, side // square(tokens)[0])
