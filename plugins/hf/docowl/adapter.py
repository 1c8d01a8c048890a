"""mPLUG-DocOwl1.5: a global image and crops, rows of four patches fused into a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.units import Unit, on_grid, uncut

#: parts of the remote code that are relied on
_PARTS = ("vision_model", "vision2text")
_IMAGE = -200


@register_adapter("MPLUGDocOwlLlamaForCausalLM")
class DocOwl(Adapter):
    """Code that comes with the checkpoint, not with transformers; known by its names.

    The H-Reducer's convolutions need the whole grid of patches, so methods choose among its tokens.
    A tile's tokens end with an embedding of their own, which always stays. The model numbers what it
    is given, so positions are contiguous.

    The published code needs an older transformers than this package does and was not run. The tests use
    a stand-in with the same parts (`tests/families/docowl.py`); a port of the published code to a
    current transformers is patched as long as it keeps their names.
    """

    stages: ClassVar[tuple[str, ...]] = ("docowl",)
    unstaged: ClassVar[str] = (
        "but this model's code comes with its checkpoint: it puts visual tokens among the text itself, "
        "and nothing is known of its layers"
    )
    fuses: ClassVar[str] = "which fuses rows of patches"
    positions: ClassVar[tuple[str, ...]] = ("contiguous",)

    def token_id(self, config: Any, modality: str) -> int | None:
        return _IMAGE if modality == "image" else None

    def projector(self, base: Model) -> nn.Module:
        return base.vision2text

    def check(self, base: Model) -> None:
        missing = [part for part in _PARTS if not hasattr(base, part)]
        if missing:
            raise VTCError(f"model: {type(base).__name__} has no {', '.join(missing)}")
        if base.vision2text.conv_shape[0] != 1:
            raise VTCError(
                f"conv_shape: got {base.vision2text.conv_shape}, allowed are rows of patches, (1, n)"
            )

    def cell(self, base: Model) -> tuple[int, int]:
        return base.vision2text.conv_shape

    def units(self, call: Call) -> list[Unit]:
        side = self.side(call.base)
        grid = side, side // self.cell(call.base)[1]
        counts, places = tiles_of_rows(call), call.kwargs.get("patch_positions")
        if places is None:  # nothing says which tiles belong together
            places = torch.zeros(sum(counts), 2, dtype=torch.long)
        return [
            Unit(uncut(grid, crops, tiles=tiles, order="tiles", tail=True), fused=True)
            for row in places.split(counts)
            for tiles, crops in _images(row.tolist())
        ]

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        cell = self.cell(call.base)
        return on_grid(values, self.side(call.base), lambda x: nn.functional.avg_pool2d(x, cell))

    def pixels(self, call: Call, units: Sequence[Unit], index: int) -> Tensor:
        start = sum(unit.tiles for unit in units[:index])
        return call.kwargs["images"][start : start + units[index].tiles]


def tiles_of_rows(call: Call) -> list[int]:
    """Tiles of each row of the batch; a row without images is given one that is not looked at.

    Raises:
        VTCError: images and placeholders disagree.
    """
    images, counts = call.kwargs["images"], call.placeholder.sum(1).clamp(min=1).tolist()
    if not isinstance(images, Tensor) or images.dim() != 4 or len(images) != sum(counts):
        got = (
            f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise VTCError(
            f"images: got {got}; while this model is compressed they are one tensor of tiles "
            f"[S, 3, h, w] with a tile for every placeholder, here {sum(counts)}"
        )
    return counts


def _images(places: list[list[int]]) -> list[tuple[int, tuple[int, int] | None]]:
    """Tiles and crops of each image of a row, from the places `(row, col)` of its tiles.

    In front of the crops, which run through their grid from (0, 0), stands the global image. Tiles
    that do not follow that pattern are images by themselves.
    """
    alone: list[tuple[int, tuple[int, int] | None]] = [(1, None)] * len(places)
    starts = [i - 1 for i, place in enumerate(places) if place == [0, 0]]
    if not starts or starts[0] != 0:
        return alone
    out: list[tuple[int, tuple[int, int] | None]] = []
    for start, stop in zip(starts, [*starts[1:], len(places)], strict=True):
        rows, cols = places[stop - 1][0] + 1, places[stop - 1][1] + 1
        if rows * cols != stop - start - 1:
            return alone
        out.append((stop - start, (rows, cols)))
    return out
