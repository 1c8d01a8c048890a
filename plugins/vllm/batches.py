"""The images of a call of vLLM's encoder, cut into slices, and what belongs to each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.plugins.vllm.spec import Spec


def flat_sizes(kwargs: Mapping[str, Any], count: int) -> list[int]:
    """Rows that each image has in inputs that are strung together."""
    for name in ("image_num_patches", "num_patches"):
        if name in kwargs:
            return torch.as_tensor(kwargs[name]).flatten().tolist()
    if "image_grid_thw" in kwargs:
        return torch.as_tensor(kwargs["image_grid_thw"]).reshape(-1, 3).prod(1).tolist()
    return [1] * count


def slices(
    kwargs: Mapping[str, Any], specs: Sequence[Spec], limit: int
) -> Iterator[tuple[dict[str, Any], Sequence[Spec]]]:
    """Parts of a call, each of no more tokens before pruning than vLLM measured its memory with.

    vLLM counts what is left of images, so at a tenth of the tokens ten times as many images may come in
    one call.

    Args:
        kwargs: of the call.
        specs: one an image.
        limit: tokens; an image that has more comes alone.
    """
    start, tokens = 0, 0
    for index, spec in enumerate(specs):
        if index > start and tokens + spec.full > limit:
            yield part(kwargs, len(specs), start, index), specs[start:index]
            start, tokens = index, 0
        tokens += spec.full
    yield part(kwargs, len(specs), start, len(specs)), specs[start:]


def part(kwargs: Mapping[str, Any], count: int, start: int, stop: int) -> dict[str, Any]:
    """The inputs of the images from `start` to `stop` of `count`."""
    if (start, stop) == (0, count):
        return dict(kwargs)
    sizes = flat_sizes(kwargs, count)
    rows = slice(sum(sizes[:start]), sum(sizes[:stop]))
    out = {}
    for name, value in kwargs.items():
        length = len(value) if isinstance(value, (list, tuple, Tensor)) and _sized(value) else None
        if length == count:
            out[name] = value[start:stop]
        elif length == sum(sizes):
            out[name] = value[rows]
        else:  # one for all
            out[name] = value
    return out


def _sized(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.dim() > 0


def tiles_of(kwargs: Mapping[str, Any], specs: Sequence[Spec]) -> list[int]:
    """Tiles of each image that go through the tower: LLaVA-NeXT's processor pads the images of a prompt
    to the same number."""
    pixels = kwargs["pixel_values"]
    padded = isinstance(pixels, (list, tuple)) and pixels[0].dim() == 4
    if padded or (isinstance(pixels, Tensor) and pixels.dim() == 5):
        return [len(each) for each in pixels]
    return [spec.unit.tiles for spec in specs]


def pixels_of(kwargs: Mapping[str, Any], specs: Sequence[Spec], index: int) -> Tensor:
    """The pixels of one image, without tiles that only pad."""
    pixels = kwargs["pixel_values"]
    sizes = flat_sizes(kwargs, len(specs))
    if len(pixels) == len(specs) and pixels[index].dim() == 4:
        return pixels[index][: specs[index].unit.tiles]
    start = sum(sizes[:index])
    if isinstance(pixels, (list, tuple)):
        return torch.stack(list(pixels[start : start + sizes[index]]))
    return pixels[start : start + sizes[index]]
