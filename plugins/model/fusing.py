"""Which patches of a tower make which token, for families whose projector fuses them.

From the configuration and the images' units alone, so that every runtime can ask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.plugins.model.units import Unit, grouped


def fused(config: Any, units: Sequence[Unit], values: Tensor) -> Tensor:
    """Values of the tower's patches `[S0, ...]`, CLS left out, as means over the tokens `[S, ...]`.

    Both tile after tile in the tower's order. Where patches are tokens they come back as they are.
    """
    fuse = _FUSING.get(config.model_type)
    return values if fuse is None else fuse(config, units, values)


def qwen_vl(config: Any, units: Sequence[Unit], values: Tensor) -> Tensor:
    """Patches of a token are neighbours; Qwen2.5 also puts tokens in window order."""
    vision = config.vision_config
    means = values.unflatten(0, (-1, vision.spatial_merge_size**2)).float().mean(1)
    if hasattr(vision, "fullatt_block_indexes"):
        means = means[torch.argsort(window_order(config, units)).to(means.device)]
    return means.to(values.dtype)


def window_order(config: Any, units: Sequence[Unit]) -> Tensor:
    """Int64 `[S]`: the raster place of each token in the order that Qwen2.5's tower works in."""
    vision = config.vision_config
    size = vision.window_size // vision.spatial_merge_size // vision.patch_size
    order, start = [], 0
    for unit in units:
        (rows, cols), frames = unit.patch_grid, unit.tiles
        frame = torch.arange(frames)[:, None, None]
        y, x = torch.arange(rows)[None, :, None], torch.arange(cols)[None, None, :]
        windows_across = -(-cols // size)
        window = (frame * -(-rows // size) + y // size) * windows_across + x // size
        order.append(start + torch.argsort(window.flatten(), stable=True))
        start += frames * rows * cols
    return torch.cat(order)


def _squares(config: Any, units: Sequence[Unit], values: Tensor) -> Tensor:
    """A pixel shuffle, or an average pool, over squares of patches."""
    side = units[0].patch_grid[0]
    patches = len(values) // sum(unit.tiles for unit in units)
    whole = round(patches**0.5)
    return grouped(values, whole, whole // side)


_FUSING: dict[str, Callable[[Any, Sequence[Unit], Tensor], Tensor]] = {
    "qwen2_vl": qwen_vl,
    "qwen2_5_vl": qwen_vl,
    "qwen3_vl": qwen_vl,
    "qwen3_vl_moe": qwen_vl,
    "internvl": _squares,
    "idefics3": _squares,
    "smolvlm": _squares,
    "gemma3": _squares,
}
