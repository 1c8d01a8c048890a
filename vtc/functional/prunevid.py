"""The maths of PruneVid's first stage: windows of a clip, and what does not move in them.

S frames (or tiles of images) of N patches, in G windows.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import normalize


def windows(labels: list[int]) -> list[int]:
    """Frames of each window of a clip, from the cluster of every frame.

    Of a cluster the longest unbroken runs stay, if longer than one frame. Every stretch of other frames
    goes to the longer of the windows beside it, the left one on a tie, from left to right.
    """
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    longest = {label: max(n for other, n in runs if other == label) for label, _ in runs}
    stays = [(label if n == longest[label] > 1 else None, n) for label, n in runs]
    parts = [(label, sum(n for _, n in run)) for label, run in groupby(stays, lambda part: part[0])]
    out: list[tuple[int | None, int]] = []
    for index, (label, n) in enumerate(parts):
        if label is None:
            right = parts[index + 1] if index + 1 < len(parts) else (None, 0)
            label = out[-1][0] if out and out[-1][1] >= right[1] else right[0]
        if out and out[-1][0] == label:
            n += out.pop()[1]
        out.append((label, n))
    return [n for _, n in out]


def stillness(tokens: Tensor, valid: Tensor, window: Tensor, frames: Tensor) -> Tensor:
    """Mean cosine of a place's tokens over the pairs of a window's frames, float32 `[G, N]`.

    -1 where a frame lacks the place, and in windows of one frame.

    Args:
        tokens: `[S, N, C]`.
        valid: bool `[S, N]`.
        window: int64 `[S]`, the window of each frame.
        frames: int64 `[G]`, frames of each window.
    """
    unit = normalize(tokens.detach().float(), dim=-1)
    size = frames[:, None]
    total = unit.new_zeros(len(frames), *unit.shape[1:]).index_add(0, window, unit)
    there = valid.new_zeros(len(frames), valid.shape[1], dtype=torch.int64)
    there = there.index_add(0, window, valid.long())
    mean = (total.square().sum(-1) - size) / (size * (size - 1)).clamp(min=1)
    return torch.where((there == size) & (size > 1), mean, -1.0)
