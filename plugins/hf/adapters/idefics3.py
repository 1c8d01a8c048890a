"""Idefics3 and SmolVLM: crops with tags between them, then a thumbnail; squares of patches fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import transformers
from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.model.mosaic import arrangement
from vtc.plugins.model.units import Unit, grouped, square


@register_adapter(
    "Idefics3ForConditionalGeneration",
    "Idefics3Model",
    "SmolVLMForConditionalGeneration",
    "SmolVLMModel",
)
class Idefics3(Adapter):
    """Every tile is a run of placeholders behind a tag. Where an image ends and how its crops are
    arranged is read from the tags: the thumbnail, last of every image, has the tag that stands last in
    the prompt, and only inside a row of crops nothing but two tags stands between them."""

    fuses: ClassVar[str] = "which fuses squares of patches"

    def check(self, base: nn.Module) -> None:
        super().check(base)
        if type(base).__name__ == "SmolVLMModel" and not hasattr(base, "get_placeholder_mask"):
            raise VTCError(
                f"transformers: {transformers.__version__} is installed, whose SmolVLM takes whole "
                "tiles only; 5.23 is known to work"
            )

    def units(self, call: Call) -> list[Unit]:
        tokens = call.base.image_seq_len
        pixels = self.real_pixels(call)
        out, start = [], 0
        for tiles, cols in self._images(call, tokens):
            crops = None
            if tiles > 1:
                crops = ((tiles - 1) // cols, cols)
                if crops[0] * crops[1] != tiles - 1:  # another prompt format: compare the pictures
                    part = pixels[start : start + tiles]
                    crops = arrangement(part[:-1], part[-1])
            out.append(Unit(tiles, square(tokens), crops, order="thumbnail_last", fused=True))
            start += tiles
        return out

    def _images(self, call: Call, tokens: int) -> list[tuple[int, int]]:
        """Tiles of each image, and crops in its first row."""
        starts = [
            (row, start + tile * tokens)
            for row, start, length in call.runs
            for tile in range(length // tokens)
        ]
        if call.ids is None:  # no tags to read: every tile is an image
            return [(1, 1)] * len(starts)
        tags = [int(call.ids[row, start - 1]) if start else -1 for row, start in starts]
        last = {row: tag for (row, _), tag in zip(starts, tags, strict=True)}
        out, first = [], 0
        for index, (row, _) in enumerate(starts):
            if tags[index] == last[row]:
                cols = 1
                places = [start for _, start in starts[first : index + 1]]
                while cols < len(places) - 1 and places[cols] - places[cols - 1] == tokens + 2:
                    cols += 1
                out.append((index + 1 - first, cols))
                first = index + 1
        return out

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        tokens = call.base.image_seq_len
        factor = call.base.connector.scale_factor
        return grouped(values, square(tokens * factor**2)[0], factor)

    def real_pixels(self, call: Call) -> Tensor:
        """`[T, 3, h, w]`, without the empty tiles that pad the batch."""
        pixels = call.pixels.flatten(0, 1)
        return pixels[pixels.flatten(1).ne(0).any(1)]

    def pixels(self, call: Call, units: Sequence[Unit], index: int) -> Tensor:
        start = sum(unit.tiles for unit in units[:index])
        return self.real_pixels(call)[start : start + units[index].tiles]
