"""Families without an adapter that follow transformers' rules for multimodal models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.methods.which import quoted, without_signals
from vtc.plugins.hf.adapters.base import Adapter, Call, register_fallback
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.units import Unit, uncut


@register_fallback
class Fallback(Adapter):
    """Whatever `get_image_features` returns for an image is a run of tokens: a square grid where their
    number allows it, otherwise one long row."""

    @property
    def irreplaceable(self) -> str:
        return "which is not known for this family"

    def units(self, call: Call) -> list[Unit]:
        units = []
        for part in call.output.pooler_output:
            count = part.flatten(0, -2).shape[0]
            side = math.isqrt(count)
            grid = (side, side) if side * side == count else (1, count)
            units.append(Unit(uncut(grid), fused=True))
        return units

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        tokens = sum(unit.patches for unit in self.units(call))
        if len(values) != tokens:
            raise VTCError(
                f"method: it reads signals of {len(values)} patches, but {type(call.base).__name__} "
                f"makes {tokens} tokens of them in a way that needs an adapter; "
                f"{quoted(without_signals())} work without"
            )
        return values

    def pixels(self, call: Call, units: Sequence[Unit], index: int) -> Tensor:
        """An image's pixels; where no grids tell which of the rows are its own, its features, whose last
        bits may depend on the batch."""
        values, grids = call.pixels, call.kwargs.get(f"{call.modality}_grid_thw")
        if len(values) == len(units):
            return values[index : index + 1]
        if grids is not None and len(grids) == len(units):
            return values.split(grids.prod(-1).tolist())[index]
        return call.output.pooler_output[index].flatten(0, -2)

    def layers(self, base: Model, modality: str = "image") -> nn.ModuleList:
        try:
            return super().layers(base, modality)
        except VTCError:
            return nn.ModuleList()

    def has_cls(self, base: Model) -> bool:
        try:
            return super().has_cls(base)
        except VTCError:
            return False

    def projector(self, base: Model) -> nn.Module | None:
        return None

    def check(self, base: Model) -> None:
        pass
