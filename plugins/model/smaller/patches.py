"""Families that take pictures of any size: Qwen's, and LLaVA with Pixtral's tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from vtc.functional.anyres import middle_lines
from vtc.plugins.model.inputs import PIXELS, Inputs
from vtc.plugins.model.smaller.base import Smaller, seats
from vtc.plugins.model.smaller.choose import Choice, grids
from vtc.plugins.model.smaller.resample import resample
from vtc.plugins.model.units import Unit, uncut


class Qwen:
    """Patches in rows of one tensor, those of a token together; clips keep their frames."""

    def choices(self, inputs: Inputs, unit: Unit) -> list[Choice]:
        return grids(unit.patch_grid, unit.tiles)

    def make(self, inputs: Inputs, units: list[Unit], chosen: Sequence[Choice | None]) -> Smaller:
        name = f"{inputs.modality}_grid_thw"
        before = inputs.kwargs[name]
        parts = list(inputs.pixels.split(before.prod(-1).tolist()))
        small, grid = list(units), before.clone()
        merge = inputs.config.vision_config.spatial_merge_size
        for index, choice in enumerate(chosen):
            if choice is None:
                continue
            rows, cols = (extent * merge for extent in choice.size)
            shape = grid[index].tolist()
            parts[index] = self._resampled(inputs, parts[index], shape, (rows, cols))
            grid[index] = torch.tensor([shape[0], rows, cols])
            small[index] = Unit(uncut(choice.size, tiles=units[index].tiles), fused=True)
        kwargs = {PIXELS[inputs.modality]: torch.cat(parts), name: grid}
        where = [seats(a.packing, b.packing) for a, b in zip(units, small, strict=True)]
        return Smaller(units, small, kwargs, where)

    def _resampled(
        self, inputs: Inputs, rows: Tensor, shape: list[int], size: tuple[int, int]
    ) -> Tensor:
        """The patches of one picture or clip; `shape` and `size` count patches."""
        vision = inputs.config.vision_config
        patch, merge = vision.patch_size, vision.spatial_merge_size
        frames = rearrange(
            rows,
            "(t h w a b) (c f p q) -> (t f) c (h a p) (w b q)",
            t=shape[0],
            h=shape[1] // merge,
            a=merge,
            b=merge,
            f=vision.temporal_patch_size,
            p=patch,
            q=patch,
        )
        return rearrange(
            resample(frames, (size[0] * patch, size[1] * patch)),
            "(t f) c (h a p) (w b q) -> (t h w a b) (c f p q)",
            f=vision.temporal_patch_size,
            a=merge,
            b=merge,
            p=patch,
            q=patch,
        )


class Pixtral:
    """Pictures in a batch that is padded to the largest; a break behind every row of tokens."""

    def choices(self, inputs: Inputs, unit: Unit) -> list[Choice]:
        return grids(unit.patch_grid)

    def make(self, inputs: Inputs, units: list[Unit], chosen: Sequence[Choice | None]) -> Smaller:
        patch = inputs.config.vision_config.patch_size
        sizes = torch.as_tensor(inputs.kwargs["image_sizes"]).clone()
        places = inputs.placeholder.flatten().nonzero().squeeze(1).cpu()
        small, where, gone, parts = list(units), [], [], []
        for index, (unit, choice) in enumerate(zip(units, chosen, strict=True)):
            here, places = places[: len(unit.layout)], places[len(unit.layout) :]
            high, wide = sizes[index].tolist()
            picture = inputs.pixels[index : index + 1, :, :high, :wide]
            if choice is None:
                where.append(torch.arange(len(unit.layout)))
            else:
                (rows, cols), (old_rows, old_cols) = choice.size, unit.patch_grid
                high, wide = rows * patch, cols * patch
                picture = resample(picture, (high, wide))
                sizes[index] = torch.tensor([high, wide])
                small[index] = Unit(uncut(choice.size))
                y, x = middle_lines(old_rows, rows), middle_lines(old_cols, cols)
                where.append((y[:, None] * old_cols + x).flatten())
                gone += _breaks(here.view(old_rows, old_cols), set(y[:-1].tolist()))
            parts.append(picture)
        box = [max(part.shape[axis] for part in parts) for axis in (-2, -1)]
        padded = [pad(p, (0, box[1] - p.shape[-1], 0, box[0] - p.shape[-2])) for p in parts]
        kwargs = {PIXELS[inputs.modality]: torch.cat(padded), "image_sizes": sizes}
        return Smaller(units, small, kwargs, where, gone)


def _breaks(here: Tensor, left: set[int]) -> list[int]:
    """The columns between rows of placeholders, but for those behind the rows `left`.

    Args:
        here: `[rows, cols]`, the columns of a picture's placeholders.
    """
    ends, starts = here[:-1, -1].tolist(), here[1:, 0].tolist()
    return [
        column
        for row, (end, start) in enumerate(zip(ends, starts, strict=True))
        if row not in left
        for column in range(end + 1, start)
    ]
