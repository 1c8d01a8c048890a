"""What plain references of methods share: one image, tile by tile, in Python loops."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from vtc import CompressedTokens, VisualTokens
from vtc.functional.budget import apportion


def tiles(tokens: VisualTokens, budget: int) -> Iterator[tuple[int, list[int], int]]:
    """Number, patches that are not padding and share of the budget of every tile."""
    available = tokens.valid.sum(1)
    shares = apportion(available, available, budget).tolist()
    for tile, share in enumerate(shares):
        yield tile, tokens.valid[tile].nonzero().squeeze(1).tolist(), share


def best(values: Tensor, among: list[int], count: int) -> list[int]:
    """The `count` patches of the largest values, best first; ties to the lower patch."""
    return sorted(among, key=lambda i: (-float(values[i]), i))[:count]


def kept(out: CompressedTokens) -> set[tuple[int, int]]:
    """Tile and patch of what was kept."""
    real = out.is_patch
    return set(zip(out.tile[real].tolist(), out.patch[real].tolist(), strict=True))


def sources(out: CompressedTokens, patches: int) -> dict[tuple[int, int], dict[int, float]]:
    """By tile and patch of each token: the source patches of its tile and their weights."""
    assert out.merged is not None
    found: dict[tuple[int, int], dict[int, float]] = {}
    rows = (out.merged.output.tolist(), out.merged.source.tolist(), out.merged.weight.tolist())
    for output, source, weight in zip(*rows, strict=True):
        tile, patch = int(out.tile[output]), int(out.patch[output])
        assert source // patches == tile
        found.setdefault((tile, patch), {})[source % patches] = weight
    return found
