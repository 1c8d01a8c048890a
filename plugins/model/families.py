"""How a family cuts pictures into tiles and tiles into tokens: from its configuration and what its
processor made, without running anything.

One function a family, `Inputs` to the units of its images or clips in the order of their placeholders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.functional.anyres import shrunk_canvas, tile_grid
from vtc.packing import Packing
from vtc.plugins.model.inputs import Inputs
from vtc.plugins.model.mosaic import arrangement
from vtc.plugins.model.units import Unit, square, uncut


def units_of(config: Any, inputs: Mapping[str, Any], modality: str = "image") -> list[Unit]:
    """The images or clips of a processor's outputs.

    Args:
        config: of the model; its `model_type` says which family it is.
        inputs: what the processor made, with `input_ids [B, L]`.

    Raises:
        VTCError: the family is not known here.
    """
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        raise VTCError(f"model_type: got {kind!r}, allowed are {', '.join(sorted(FAMILIES))}")
    ids = inputs["input_ids"]
    placeholder = ids == getattr(config, f"{modality}_token_id")
    return FAMILIES[kind](Inputs(config, modality, inputs, ids, placeholder))


def grid_side(config: Any) -> int:
    """Rows of patches of a square tile, as the vision tower sees it."""
    return config.vision_config.image_size // config.vision_config.patch_size


def one_tile(inputs: Inputs) -> list[Unit]:
    """Every image is one square tile, every patch a token: CLIP's towers drop their CLS token."""
    patch = inputs.config.vision_config.patch_size
    grid = inputs.pixels.shape[-2] // patch, inputs.pixels.shape[-1] // patch
    return [Unit(uncut(grid))] * len(inputs.pixels)


def llava(inputs: Inputs) -> list[Unit]:
    """LLaVA-1.5, VipLLaVA; and Pixtral, which takes images of any size and packs them."""
    sizes = inputs.kwargs.get("image_sizes")
    if sizes is None:
        return one_tile(inputs)
    patch = inputs.config.vision_config.patch_size
    return [
        Unit(uncut((height // patch, width // patch)))
        for height, width in torch.as_tensor(sizes).tolist()
    ]


def llava_next(inputs: Inputs) -> list[Unit]:
    """A thumbnail, crops on an un-padded canvas, a newline behind every canvas row."""
    return _anyres(inputs, [True] * len(inputs.kwargs["image_sizes"]))


def _anyres(inputs: Inputs, cropped: list[bool]) -> list[Unit]:
    """Images with crops, but for those that are not `cropped`."""
    config = inputs.config
    pinpoints = [tuple(p) for p in config.image_grid_pinpoints]
    tile_size, grid = config.vision_config.image_size, (grid_side(config),) * 2
    out = []
    sizes = torch.as_tensor(inputs.kwargs["image_sizes"]).tolist()
    for size, crop in zip(map(tuple, sizes), cropped, strict=True):
        crops = tile_grid(size, pinpoints, tile_size) if crop else None
        out.append(Unit(Packing(grid, crops, size, newline=True)))
    return out


def llava_next_video(inputs: Inputs) -> list[Unit]:
    """Frames of a clip are pooled before the projector, and have no newline."""
    if inputs.modality == "image":
        return llava_next(inputs)
    clips, frames = inputs.pixels.shape[:2]
    side = grid_side(inputs.config) // inputs.config.spatial_pool_stride
    return [Unit(uncut((side, side), tiles=frames))] * clips


def llava_onevision(inputs: Inputs) -> list[Unit]:
    """Large canvases are scaled down; several images of a prompt have no crops; clips are scaled down
    behind the projector and have one newline at their end."""
    if inputs.modality == "video":
        clips, frames = inputs.pixels.shape[:2]
        side = -(-grid_side(inputs.config) // 2)
        return [Unit(uncut((side, side), tiles=frames, newline=True), fused=True)] * clips
    counts = inputs.kwargs.get("batch_num_images")
    if counts is None:
        cropped = [True] * len(inputs.kwargs["image_sizes"])
    else:
        counts = torch.as_tensor(counts).tolist()
        cropped = [count == 1 for count in counts for _ in range(count)]
    ratio = inputs.kwargs.get("vision_aspect_ratio") or inputs.config.vision_aspect_ratio
    limit = int(ratio.rsplit("_", 1)[-1])
    return [_shrunk(unit, limit) for unit in _anyres(inputs, cropped)]


def _shrunk(unit: Unit, limit: int) -> Unit:
    """A unit whose canvas holds more tokens than `limit` tiles have is scaled down."""
    if unit.packing.tile_grid is None:
        return unit
    top, bottom, left, right = unit.packing.geometry.region
    side = unit.patch_grid[0]
    shrunk = shrunk_canvas((bottom - top, right - left), side, limit) is not None
    return Unit(replace(unit.packing, shrink=limit), fused=True) if shrunk else unit


def video_llava(inputs: Inputs) -> list[Unit]:
    """One tile an image; the frames of a clip keep their CLS token."""
    if inputs.modality == "image":
        return one_tile(inputs)
    clips, frames = inputs.pixels.shape[:2]
    return [Unit(uncut((grid_side(inputs.config),) * 2, tiles=frames, lead=True))] * clips


def qwen_vl(inputs: Inputs) -> list[Unit]:
    """Grids of any size, `spatial_merge_size` squared patches in a token."""
    merge = inputs.config.vision_config.spatial_merge_size
    return [
        Unit(uncut((rows // merge, cols // merge), tiles=frames), fused=True)
        for frames, rows, cols in inputs.kwargs[f"{inputs.modality}_grid_thw"].tolist()
    ]


def internvl(inputs: Inputs) -> list[Unit]:
    """Crops, then a thumbnail; squares of patches fused into a token.

    Nothing says how many crops an image has, which follows from its run of placeholders, nor how they
    are arranged, which follows from comparing them with the thumbnail.
    """
    patch, ratio = inputs.config.vision_config.patch_size[0], inputs.config.downsample_ratio
    grid = square(int(inputs.pixels.shape[-1] // patch * ratio) ** 2)
    tokens = grid[0] * grid[1]
    out, start = [], 0
    for _, _, length in inputs.runs:
        tiles = length // tokens
        pixels = inputs.pixels[start : start + tiles]
        crops = arrangement(pixels[:-1], pixels[-1]) if tiles > 1 else None
        out.append(Unit(uncut(grid, crops, order="thumbnail_last"), fused=True))
        start += tiles
    return out


def cohere2_vision(inputs: Inputs) -> list[Unit]:
    """Crops, then a thumbnail; squares of patches fused into a token.

    Every tile is a run of placeholders with one token behind it: tiles with more between them belong to
    two images. How crops are arranged follows from comparing them with the thumbnail.
    """
    grid = (grid_side(inputs.config) // inputs.config.downsample_factor,) * 2
    images: list[int] = []  # tiles of each
    gap_at = None  # row and column behind the tile before
    for row, start, length in inputs.runs:
        if (row, start - 1) == gap_at:
            images[-1] += 1
        else:
            images.append(1)
        gap_at = row, start + length
    out = []
    for pixels in inputs.pixels.split(images):
        crops = arrangement(pixels[:-1], pixels[-1]) if len(pixels) > 1 else None
        out.append(Unit(uncut(grid, crops, order="thumbnail_last"), fused=True))
    return out


def idefics3(inputs: Inputs) -> list[Unit]:
    """Idefics3 and SmolVLM: every tile is a run of placeholders behind a tag, squares of patches fused.

    Where an image ends and how its crops are arranged is read from the tags: the thumbnail, last of
    every image, has the tag that stands last in the prompt, and only inside a row of crops nothing but
    two tags stands between them.
    """
    grid = (grid_side(inputs.config) // inputs.config.scale_factor,) * 2
    pixels = real_tiles(inputs.pixels)
    out, start = [], 0
    for tiles, cols in _tagged(inputs, grid[0] * grid[1]):
        crops = None
        if tiles > 1:
            crops = ((tiles - 1) // cols, cols)
            if crops[0] * crops[1] != tiles - 1:  # another prompt format: compare the pictures
                part = pixels[start : start + tiles]
                crops = arrangement(part[:-1], part[-1])
        out.append(Unit(uncut(grid, crops, order="thumbnail_last"), fused=True))
        start += tiles
    return out


def _tagged(inputs: Inputs, tokens: int) -> list[tuple[int, int]]:
    """Tiles of each image, and crops in its first row."""
    starts = [
        (row, start + tile * tokens)
        for row, start, length in inputs.runs
        for tile in range(length // tokens)
    ]
    if inputs.ids is None:  # no tags to read: every tile is an image
        return [(1, 1)] * len(starts)
    tags = [int(inputs.ids[row, start - 1]) if start else -1 for row, start in starts]
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


def real_tiles(pixels: Tensor) -> Tensor:
    """`[B, tiles, 3, h, w]` as `[T, 3, h, w]`, without the empty tiles that pad the batch."""
    pixels = pixels.flatten(0, 1)
    return pixels[pixels.flatten(1).ne(0).any(1)]


def gemma3(inputs: Inputs) -> list[Unit]:
    """One tile an image; squares of patches averaged."""
    return [Unit(uncut(square(inputs.config.mm_tokens_per_image)), fused=True)] * len(inputs.pixels)


#: by `model_type`
FAMILIES: dict[str, Callable[[Inputs], list[Unit]]] = {
    "llava": llava,
    "vipllava": llava,
    "llava_next": llava_next,
    "llava_next_video": llava_next_video,
    "llava_onevision": llava_onevision,
    "video_llava": video_llava,
    "qwen2_vl": qwen_vl,
    "qwen2_5_vl": qwen_vl,
    "qwen3_vl": qwen_vl,
    "qwen3_vl_moe": qwen_vl,
    "internvl": internvl,
    "cohere2_vision": cohere2_vision,
    "idefics3": idefics3,
    "smolvlm": idefics3,
    "paligemma": one_tile,
    "gemma3": gemma3,
}
