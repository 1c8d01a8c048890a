"""Methods that pick greedily: DivPrune, SCOPE, IDPruner's MMR, CDPruner, MMTok, EADP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtc import VisualTokens, create_method
from vtc.batch import ImageBatch
from vtc.functional.grids import squared_padding


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


def cdpruner(case: Any) -> None:
    method = create_method("cdpruner", tokens=case.info["tokens"])
    features, embeds = case.input("features"), case.input("image_embeds")
    text = case.input("text_embeds")
    if "KNOWN_BUG" in case.name:
        images = [
            _tokens(f, {"patch_embedding": e[None], "text_segments": text})
            for f, e in zip(features, embeds, strict=True)
        ]
        keep = torch.zeros(features.shape[:2], dtype=torch.uint8)
        for row, out in zip(keep, method.compress_all(images), strict=True):
            row[out.patch] = 1
        case.expect("keep_alone", keep, need=True)
        if not case.differs("official_keep", keep):
            raise AssertionError("reproduces the official batch defect")
        return
    tokens = _tokens(features, {"patch_embedding": embeds[None], "text_segments": text})
    relevance = method.relevance(ImageBatch([tokens], [method]))[0]
    case.expect("relevance", relevance, rtol=1e-4, atol=1e-7, need=True)
    _compare(case, method, tokens)


def mmtok(case: Any) -> None:
    info, size = case.info, case.info["image_size_wh"]
    method = create_method(
        "mmtok",
        tokens=info["tokens"],
        alpha=info["alpha"],
        text_temperature=info["tv_temperature"],
        vision_temperature=info["vv_temperature"],
        squared=size is not None,
    )
    tokens = VisualTokens(
        case.input("features")[None],
        _square(info["n_patches"]),
        image_size=None if size is None else (size[1], size[0]),
        signals={
            "projector_input": case.input("vision_features")[None],
            "question_tokens": case.input("text_tokens"),
        },
    )
    outside = squared_padding(tokens.patch_grid, tokens.image_size).nonzero().squeeze(1)
    assert torch.equal(outside, case.input("excluded_idx").long())
    _compare(case, method, tokens)


def eadp(case: Any) -> None:
    info = case.info
    options = dict(
        alpha=info["alpha"],
        beta=info["beta"],
        pointed=info.get("entropy_keep", 0.2),
        sharpness=info.get("entropy_temperature", 100.0),
        temperature=info.get("aggregation_temperature", 0.01),
        sigma=info.get("sigma", 1.0),
    )
    features = case.input("features")
    if "grid" in info:
        words = case.input("text_tokens")
        torch.testing.assert_close(words.mean(0), case.input("text_mean"))
        method = create_method("eadp", text_score="similarity", tokens=info["tokens"], **options)
        tokens = _tokens(features, {"question_tokens": words}, tuple(info["grid"]))
        importance = method.importance(ImageBatch([tokens], [method]))[0]
        case.expect("importance", importance, rtol=1e-4, atol=1e-7, need=True)
        _compare(case, method, tokens)
        return
    tiles, side = info["tiles"], info["side"]
    method = create_method(
        "eadp", tokens=info["tokens_per_tile"] * tiles, rounding="official", **options
    )
    tokens = VisualTokens(
        features,
        (side, side),
        signals={
            "patch_embedding": case.input("image_embeds"),
            "text_embedding": case.input("text_embed"),
            "text_sequence": case.input("text_sequence"),
        },
    )
    batch = ImageBatch([tokens], [method])
    importance = method.importance(batch)
    case.expect("importance", importance, rtol=1e-4, atol=1e-7, need=True)
    case.expect("quota", method.candidates_by(batch, importance).counts, need=True)
    keep = torch.zeros(tokens.valid.shape, dtype=torch.uint8)
    out = method.compress(tokens)
    keep[out.tile, out.patch] = 1
    case.expect("keep", keep, need=True)


RUNNERS: dict[str, Callable[[Any], None]] = {
    "dp_": divprune,
    "sc_": scope,
    "id_": mmr,
    "cd_": cdpruner,
    "mm_": mmtok,
    "ea_": eadp,
}
