"""Golden runners of the methods that go by attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc import VisualTokens, create_method
from vtc.tokens import CompressedTokens


def tokens_of(
    features: Tensor | None, signals: dict[str, Tensor], grid: tuple[int, int] | None = None
) -> VisualTokens:
    """Tiles of one image side by side, `[N, ...]` as one tile; without features these are the
    patches' own numbers."""
    some = next(iter(signals.values())) if signals else features
    assert some is not None
    if features is None:
        patches = some.shape[-1]
        features = torch.arange(float(patches))[:, None]
    if features.dim() == 2:
        features = features[None]
        signals = {name: value[None] for name, value in signals.items()}
    patches = features.shape[1]
    side = round(patches**0.5)
    grid = grid or ((side, side) if side * side == patches else (1, patches))
    return VisualTokens(features, grid, signals=signals)


def kept(out: CompressedTokens) -> Tensor:
    """The kept patches, in their order."""
    return out.patch[out.is_patch]


def fastervlm(case: Any) -> None:
    attention = case.input("cls_attention").mean(0)
    method = create_method("fastervlm", tokens=case.info["tokens"])
    tokens = tokens_of(None, {"attention": attention})
    case.expect("score", attention, rtol=1e-4)
    case.expect("keep_idx", kept(method.compress(tokens)), need=True)


RUNNERS = {"fv": fastervlm}
