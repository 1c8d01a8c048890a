"""Families that cut a picture into square crops beside a thumbnail: fewer crops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.functional.anyres import tile_grid
from vtc.packing import Packing
from vtc.plugins.model.inputs import PIXELS, Inputs
from vtc.plugins.model.smaller.base import Smaller, seats
from vtc.plugins.model.smaller.choose import Choice, grids
from vtc.plugins.model.smaller.resample import resample
from vtc.plugins.model.units import Unit, uncut

#: of CLIP's towers; the others of these families have one half for all
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

#: the size of a picture of which the thumbnail alone is left: so flat that no canvas holds any of it, so
#: that the family's own rule takes an empty one, (0, 0), where that is among the canvases
THUMBNAIL = 1, 10**9


class AnyRes:
    """LLaVA-NeXT and its kin: a picture on the best of some canvases, beside a thumbnail.

    What decides is the size of the picture: a smaller one gets a smaller canvas. The thumbnail
    stays, and is all that is left where a budget is below the smallest canvas.

    Args:
        units: how the family reads its inputs.
    """

    def __init__(self, units: Callable[[Inputs], list[Unit]]) -> None:
        self.units = units

    def choices(self, inputs: Inputs, unit: Unit) -> list[Choice]:
        size = unit.packing.image_size
        if unit.packing.tile_grid is None or size is None:  # a frame, or one of several images
            return [Choice(unit.packing.patches, size or (0, 0))]
        tile = inputs.config.vision_config.image_size
        pinpoints = [tuple(p) for p in inputs.config.image_grid_pinpoints]
        found = {THUMBNAIL: Choice(unit.patches, THUMBNAIL)}
        for high, wide in pinpoints:
            scale = min(high / size[0], wide / size[1])
            fitted = max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)
            crops = tile_grid(fitted, pinpoints, tile)
            packing = replace(unit.packing, tile_grid=crops, image_size=fitted, tiles=0)
            if packing.geometry.available[1:] and sum(packing.geometry.available[1:]):
                found[fitted] = Choice(packing.patches, fitted)
        whole = Choice(unit.packing.patches, size)
        fewer = [c for c in found.values() if c.patches < whole.patches]
        return [*sorted(fewer, key=lambda c: (c.patches, c.size)), whole]

    def make(self, inputs: Inputs, units: list[Unit], chosen: Sequence[Choice | None]) -> Smaller:
        sizes = torch.as_tensor(inputs.kwargs["image_sizes"]).clone()
        pixels, tiles = inputs.pixels, [unit.tiles for unit in units]
        # `[images, most tiles, 3, h, w]`, or all tiles in one batch
        parts = [p[:n] for p, n in zip(pixels, tiles, strict=True)] if pixels.dim() == 5 else None
        parts = parts or list(pixels.split(tiles))
        for index, choice in enumerate(chosen):
            if choice is not None:
                parts[index] = self._fewer(inputs, units[index], parts[index], choice.size)
                sizes[index] = torch.tensor(choice.size)
        kwargs: dict[str, Any] = {"image_sizes": sizes}
        if pixels.dim() == 5:
            most = max(map(len, parts))
            gaps = [pad(p, (0,) * 7 + (most - len(p),)) for p in parts]
            kwargs[PIXELS[inputs.modality]] = torch.stack(gaps)
        else:
            kwargs[PIXELS[inputs.modality]] = torch.cat(parts)
        given = replace(inputs, kwargs={**inputs.kwargs, **kwargs})
        small = list(units)
        for index, (unit, choice) in enumerate(zip(self.units(given), chosen, strict=True)):
            if choice is not None and choice.size == THUMBNAIL:
                size = units[index].packing.image_size
                unit = Unit(Packing(unit.patch_grid, None, size, newline=True))
            small[index] = units[index] if choice is None else unit
        where = [seats(a.packing, b.packing) for a, b in zip(units, small, strict=True)]
        return Smaller(units, small, kwargs, where)

    def _fewer(self, inputs: Inputs, unit: Unit, tiles: Tensor, size: tuple[int, int]) -> Tensor:
        """Thumbnail and crops of one picture at `size`, whose canvas is the one that goes with it."""
        if size == THUMBNAIL:
            return tiles[:1]
        config, side = inputs.config, inputs.config.vision_config.image_size
        crops, before = unit.packing.tile_grid, unit.packing.image_size
        assert crops is not None and before is not None, "`choices` leaves the others"
        canvas = joined(tiles[1:], crops)
        top, left, high, wide = _placed(before, canvas.shape[-2:])
        picture = canvas[:, top : top + high, left : left + wide]
        grid = tile_grid(size, [tuple(p) for p in config.image_grid_pinpoints], side)
        target = grid[0] * side, grid[1] * side
        top, left, high, wide = _placed(size, target)
        out = black(config, canvas)[:, None, None].repeat(1, *target)
        out[:, top : top + high, left : left + wide] = resample(picture[None], (high, wide))[0]
        return torch.cat([tiles[:1], cut(out, grid)])


class InternVL:
    """Crops, then the thumbnail, which is all there is of a picture without crops."""

    def choices(self, inputs: Inputs, unit: Unit) -> list[Choice]:
        crops = unit.packing.tile_grid
        if crops is None:
            return [Choice(unit.packing.patches, (1, 1))]
        return [Choice(unit.patches * (c.patches + (c.patches > 1)), c.size) for c in grids(crops)]

    def make(self, inputs: Inputs, units: list[Unit], chosen: Sequence[Choice | None]) -> Smaller:
        parts, small = list(inputs.pixels.split([unit.tiles for unit in units])), list(units)
        for index, choice in enumerate(chosen):
            crops = units[index].packing.tile_grid
            if choice is None or crops is None:
                continue
            tiles, size = parts[index], choice.size
            if size == (1, 1):
                parts[index], grid = tiles[-1:], None
            else:
                side = tiles.shape[-2:]
                whole = resample(
                    joined(tiles[:-1], crops)[None], (size[0] * side[0], size[1] * side[1])
                )[0]
                parts[index], grid = torch.cat([cut(whole, size), tiles[-1:]]), size
            packing = uncut(units[index].patch_grid, grid, order="thumbnail_last")
            small[index] = Unit(packing, fused=True)
        where = [seats(a.packing, b.packing) for a, b in zip(units, small, strict=True)]
        return Smaller(units, small, {PIXELS[inputs.modality]: torch.cat(parts)}, where)


def joined(crops: Tensor, grid: tuple[int, int]) -> Tensor:
    """The canvas `[C, H, W]` that crops `[n, C, h, w]` were cut from, row by row."""
    rows = crops.unflatten(0, grid).permute(2, 0, 3, 1, 4)
    return rows.flatten(3, 4).flatten(1, 2)


def cut(canvas: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of `joined`."""
    rows = canvas.unflatten(2, (grid[1], -1)).unflatten(1, (grid[0], -1))
    return rows.permute(1, 3, 0, 2, 4).flatten(0, 1)


def black(config: Any, like: Tensor) -> Tensor:
    """`[C]`, a black pixel as the tower reads it: what canvases are padded with."""
    if config.vision_config.model_type != "clip_vision_model":
        return like.new_full((len(like),), -1.0)
    mean, std = (torch.tensor(values) for values in _CLIP)
    return (-mean / std).to(like)


def _placed(size: tuple[int, int], canvas: Sequence[int]) -> tuple[int, int, int, int]:
    """`(top, left, height, width)` of a picture of `size` that is made to fit a canvas, in pixels."""
    across, down = canvas[1] / size[1], canvas[0] / size[0]
    if across < down:
        high, wide = min(math.ceil(size[0] * across), canvas[0]), canvas[1]
    else:
        high, wide = canvas[0], min(math.ceil(size[1] * down), canvas[1])
    return (canvas[0] - high) // 2, (canvas[1] - wide) // 2, high, wide
