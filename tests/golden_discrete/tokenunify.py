"""TokenUnify: the prefix that is kept of a volume, and the patch behind it."""

from __future__ import annotations

from typing import Any

import torch

from tests.golden_discrete.common import Result, runner
from vtc.discrete import masks


@runner("tokenunify__prefix_keep")
def prefix_keep(case: Any) -> Result:
    args, volume = case.info["args"], case.input("in.volume")
    patch, keep = args["patch"], args["keep"]
    blocks = volume
    for axis in range(3):  # raster of patches, then the voxels of each
        blocks = blocks.unflatten(2 * axis, (-1, patch[axis]))
    counts = blocks.shape[::2]
    parts = blocks.permute(0, 2, 4, 1, 3, 5).reshape(-1, *patch)
    visible = masks.next_all(len(parts), keep)[-1]
    visible[-1] = False  # the last position sees itself as well as the prefix
    rest = torch.zeros_like(parts)
    if args["fill"]:
        rest[keep:] = case.input("in.noise").to(parts)
    kept = torch.where(visible[:, None, None, None], parts, rest)
    back = kept.reshape(*counts, *patch).permute(0, 3, 1, 4, 2, 5)
    return {"out.masked": back.reshape(volume.shape), "out.next_patch": parts[keep]}
