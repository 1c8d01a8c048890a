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


def over_windows(values: Tensor, frames: Tensor) -> Tensor:
    """Sums of `[S, ...]` over each window's frames, `[G, ...]`, the same on every run.

    Args:
        frames: int64 `[G]`, S together.
    """
    return torch.segment_reduce(values, "sum", lengths=frames, unsafe=True)


def stillness(tokens: Tensor, valid: Tensor, frames: Tensor) -> Tensor:
    """Mean cosine of a place's tokens over the pairs of a window's frames, float32 `[G, N]`.

    -1 where a frame lacks the place, and in windows of one frame.

    Args:
        tokens: `[S, N, C]`.
        valid: bool `[S, N]`.
        frames: int64 `[G]`, frames of each window.
    """
    size = frames[:, None]
    total = over_windows(normalize(tokens.detach().float(), dim=-1), frames)
    mean = (total.square().sum(-1) - size) / (size * (size - 1)).clamp(min=1)
    there = over_windows(valid.float(), frames) == size
    return torch.where(there & (size > 1), mean, -1.0)
