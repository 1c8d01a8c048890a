"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and its MoE: grids of any size, four patches in a token, clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad
from transformers import vision_utils

from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.model import families, fusing
from vtc.plugins.model.inputs import PIXELS
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
    takes_some: ClassVar[bool] = True
    fuses: ClassVar[str] = "which fuses squares of patches"

    def grids(self, call: Call) -> Tensor:
        """`(frames, rows, cols)` of patches of every image or clip."""
        return call.kwargs[f"{call.modality}_grid_thw"]

    def units(self, call: Call) -> list[Unit]:
        return families.qwen_vl(call)

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        return fusing.qwen_vl(call.base.config, self.units(call), values)

    def only(self, call: Call, kept: Sequence[Tensor]) -> dict[str, Any]:
        """transformers takes ready-made places, borders and windows beside the pixels
        (`transformers.vision_utils`); the grids then say no more than how many tokens an image has."""
        tower, grids = self.tower(call.base), self.grids(call)
        merge, device = tower.spatial_merge_size, call.pixels.device
        unit = merge**2
        grids = grids.to(device)
        starts = pad((grids.prod(-1) // unit).cumsum(0), (1, 0)).tolist()
        tokens = torch.cat([a.to(device) + n for a, n in zip(kept, starts, strict=False)])
        rows = (tokens[:, None] * unit + torch.arange(unit, device=device)).flatten()

        def borders(group: Tensor) -> Tensor:
            """Where groups of neighbours begin and end, in patches."""
            counts = group.unique_consecutive(return_counts=True)[1]
            return pad((counts * unit).cumsum(0), (1, 0)).to(torch.int32)

        sizes = (grids[:, 1] * grids[:, 2] // unit).repeat_interleave(grids[:, 0])
        frame = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
        out: dict[str, Any] = {
            PIXELS[call.modality]: call.pixels[rows],
            f"{call.modality}_grid_thw": grids.new_tensor(
                [[1, merge, merge * len(a)] for a in kept]
            ),
            "position_ids": vision_utils.get_vision_position_ids(grids, merge)[rows],
            "cu_seqlens": borders(frame[tokens]),
        }
        if hasattr(tower, "fullatt_block_indexes"):
            order, ends = vision_utils.get_vision_window_index(
                grids, merge, tower.window_size, tower.patch_size
            )
            order = order.to(device)
            window = torch.bucketize(
                torch.arange(len(order), device=device), ends[1:] // unit, right=True
            )
            place = torch.full_like(order, -1)
            place[tokens] = torch.arange(len(tokens), device=device)
            left = place[order] >= 0
            out["window_index"] = place[order][left]
            out["cu_window_seqlens"] = borders(window[left])
        if hasattr(tower, "pos_embed"):
            taps = vision_utils.get_vision_interpolation_indices_and_weights(
                grids,
                num_grid_per_side=tower.num_grid_per_side,
                mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners,
                spatial_merge_size=merge,
            )
            out["interp_indices"], out["interp_weights"] = (each[rows] for each in taps)
        return out

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
