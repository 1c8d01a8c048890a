"""Methods that pick greedily: DivPrune, SCOPE, IDPruner's MMR, CDPruner, MMTok, EADP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtc import VisualTokens, create_method
from vtc.batch import ImageBatch


def _square(patches: int) -> tuple[int, int]:
    side = round(patches**0.5)
    return (side, side) if side * side == patches else (1, patches)


def _tokens(
    features: Tensor, signals: dict[str, Tensor], grid: tuple[int, int] | None = None
) -> VisualTokens:
    """One tile."""
    return VisualTokens(features[None], grid or _square(len(features)), signals=signals)


def picks(method: Any, tokens: VisualTokens) -> Tensor:
    """The picks of an image in order, and whether they are what stays."""
    order = method.pick(ImageBatch([tokens], [method])).order
    flat = order[order >= 0].flatten()
    if len(order) == 1:
        assert torch.equal(method.compress(tokens).patch, flat.sort().values)
    return flat


def _compare(case: Any, method: Any, tokens: VisualTokens) -> None:
    found = picks(method, tokens)
    case.expect("pick_idx", found, need=True)
    case.expect("keep_idx", found.sort().values, need=True)


def divprune(case: Any) -> None:
    method = create_method("divprune", tokens=case.info["tokens"])
    _compare(case, method, _tokens(case.input("features"), {}))


def scope(case: Any) -> None:
    method = create_method("scope", tokens=case.info["tokens"], alpha=case.info["alpha"])
    attention = case.input("cls_attention").mean(0, keepdim=True)
    _compare(case, method, _tokens(case.input("features"), {"saliency": attention}))


def mmr(case: Any) -> None:
    info = case.info
    method = create_method(
        "mmr", tokens=info["tokens"], balance=info["mmr_lambda"], together=info["parallel_k"]
    )
    importance = case.input("raw_importance")[None]
    tokens = _tokens(case.input("features"), {"importance": importance})
    case.expect(
        "importance", method.weight(ImageBatch([tokens], [method]))[0], rtol=1e-4, atol=1e-7
    )
    _compare(case, method, tokens)


RUNNERS: dict[str, Callable[[Any], None]] = {"dp_": divprune, "sc_": scope, "id_": mmr}
