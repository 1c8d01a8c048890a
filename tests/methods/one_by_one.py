"""Greedy methods by a loop over candidates, for one image, in float64: independent of the library's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vtc import VisualTokens
from vtc.functional.budget import apportion

#: the picks so far and a candidate -> how much it adds
Score = Callable[[list[int], int], float]


def groups(tokens: VisualTokens, scope: str, budget: int) -> Iterator[tuple[list[int], int]]:
    """Patches that compete with each other, as `tile * N + patch`, and how many of them are picked."""
    tiles, patches = tokens.valid.shape
    flat = [i for i in range(tiles * patches) if bool(tokens.valid.flatten()[i])]
    if scope == "image":
        yield flat, budget
        return
    by_tile = [[i for i in flat if i // patches == tile] for tile in range(tiles)]
    sizes = [len(each) for each in by_tile]
    yield from zip(by_tile, apportion(sizes, sizes, budget).tolist(), strict=True)


def greedy(candidates: list[int], count: int, score: Score) -> list[int]:
    """The best candidate by `score`, again and again; the first of equals."""
    picks: list[int] = []
    for _ in range(count):
        left = [i for i in candidates if i not in picks]
        picks.append(max(left, key=lambda i: score(picks, i)))
    return picks


def cosines(rows: Tensor) -> Tensor:
    """`[n, n]` of rows `[..., D]`."""
    unit = torch.nn.functional.normalize(rows.double().flatten(0, -2), dim=-1)
    return unit @ unit.T


def kept(out) -> list[int]:
    """What stays, as `tile * 64 + patch` of images with 64 patches a tile."""
    return sorted((out.tile * 64 + out.patch)[out.is_patch].tolist())
