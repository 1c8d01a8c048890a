"""Golden runners of the methods that go by attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc import VisualTokens, create_method
from vtc.batch import ImageBatch
from vtc.functional.bipartite import merge_pairs
from vtc.functional.holov import cut, quotas, run_scores
from vtc.functional.vispruner import choose
from vtc.methods.hiprune import beside
from vtc.methods.tome import destinations
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


def visionzip(case: Any) -> None:
    info, hidden, keys = case.info, case.input("hidden"), case.input("key_metric")
    attention = case.input("cls_attention").mean(-2)
    dominant = info["dominant"] - 1  # CLS is left out, and put in front again below
    method = create_method(
        "visionzip",
        tokens=dominant + info["contextual"],
        contextual=info["contextual"],
        order="official",
    )
    if "grid_wh" in info:
        return visionzip_crops(case, method, dominant)
    out = method.compress(
        tokens_of(hidden[1:], {"attention": attention, "key_mean": keys}),
    )
    patch, merged = kept(out), out.merged
    target = torch.full((len(hidden),), -1)
    target[merged.source] = patch[merged.output]
    given = [i for i, t in enumerate(target.tolist()) if t not in (-1, i)]
    case.expect("dominant_idx", patch[:dominant])
    case.expect("target_idx", patch[dominant:])
    case.expect("owner", torch.searchsorted(patch[dominant:], target[given]))  # its number
    case.expect("count", out.weight[dominant:] - 1)
    tokens = torch.cat([hidden[:1], out.features])
    case.expect("out_tokens", tokens, atol=2e-5, rtol=1e-4, need=True)


def visionzip_crops(case: Any, method: Any, dominant: int) -> None:
    """The official packing of crops: kept patches of the canvas, all CLS rows, all merged tokens."""
    hidden, keys = case.input("hidden"), case.input("key_metric")
    attention = case.input("cls_attention").mean(-2)
    crops = [
        tokens_of(h[1:], {"attention": a, "key_mean": k})
        for h, a, k in zip(hidden, attention, keys, strict=True)
    ]
    outs = method.compress_all(crops)
    across, side = case.info["grid_wh"][0], crops[0].patch_grid[0]
    crop = torch.arange(len(crops))[:, None]
    patch = torch.stack([kept(out)[:dominant] for out in outs])
    row, col = crop // across * side + patch // side, crop % across * side + patch % side
    place = (row * across * side + col).flatten()
    order = place.argsort()
    first = torch.cat([out.features[:dominant] for out in outs])[order]
    last = [out.features[dominant:] for out in outs]
    case.expect("canvas_idx", place[order])
    tokens = torch.cat([first, hidden[:, 0], *last])
    case.expect("out_tokens", tokens, atol=2e-5, rtol=1e-4, need=True)


def hiprune(case: Any) -> None:
    info = case.info
    signals = {"object": case.input("received_object"), "deep": case.input("received_deep")}
    tiles, patches = signals["deep"].shape
    features = torch.zeros(tiles, patches, 1)
    tokens = VisualTokens(features, tuple(info["grid"]), signals=signals)
    total = tiles * info["tokens_per_tile"]
    method = create_method("hiprune", tokens=total, alpha=info["alpha"], neighbours="official")
    anchor = torch.zeros(tiles, patches, dtype=torch.bool)
    for tile, count in enumerate(info["anchors"]):
        case.expect_value("anchors", round(info["tokens_per_tile"] * info["alpha"] / 5), count)
        anchor[tile, signals["object"][tile].topk(count).indices] = True
    buffer = beside(anchor, tokens.patch_grid, "official")[0].nonzero().squeeze(1)
    case.expect("buffer_idx", buffer)
    out, keep = method.compress(tokens), torch.zeros_like(anchor)
    keep[out.tile, out.patch] = True
    case.expect("keep", keep, need=True)


def vispruner(case: Any) -> None:
    info, features = case.info, case.input("features")
    tokens, ratio = info["tokens"], info["important_ratio"]
    attention = case.input("cls_attention").mean(0)
    front = int(tokens * ratio)
    left = len(features) - front if tokens > front else 0
    valid = torch.ones(1, len(features), dtype=torch.bool)
    order, rest = choose(attention[None], features[None], valid, [front], [left], [tokens - front])
    case.expect("important_idx", order[0, :front])
    case.expect("diverse_idx", rest[0, : tokens - front])
    method = create_method("vispruner", tokens=tokens, important=ratio)
    out = method.compress(tokens_of(features, {"attention": attention}))
    case.expect("keep_idx", kept(out), need=True)


def prumerge(case: Any) -> None:
    info, features = case.info, case.input("features")
    plus = info["method"] == "prumerge_plus"
    fixed = {} if info["adaptive"] else {"tokens": int(len(features) * info["reduction_ratio"]) + 1}
    method = create_method("prumerge", plus=plus, grid="official", order="official", **fixed)
    signals = {"cls_query": case.input("q_cls"), "keys": case.input("keys")}
    tokens = tokens_of(features, signals)
    case.expect("cls_attn", method.attention(ImageBatch([tokens], [method]))[0], atol=1e-6)
    out = method.compress(tokens)
    case.expect("idx", kept(out)[:-1])
    case.expect("out_tokens", out.features, atol=2e-5, rtol=1e-4, need=True)


def vscan(case: Any) -> None:
    info, features = case.info, case.input("features")
    if info["method"] == "vscan":
        names = ("shallow_attention", "deep_attention")
        local, deep = (case.input(name).mean(0) for name in names)
        # the official code ends with fewer than it was asked for
        half = info["tokens"] // 2 // 16 * 16
        options = {"quota": "each", "tokens": half + info["tokens"] - info["tokens"] // 2}
    else:
        local, deep = case.input("local_attention"), case.input("global_attention")
        options = {"tokens": info["tokens"]}
    tokens = tokens_of(features, {"local": local, "attention": deep}, tuple(info["grid"]))
    method = create_method("vscan", window=info["window"], **options)
    picked = method.local(ImageBatch([tokens], [method]), [options["tokens"]])
    case.expect("local_idx", picked[0].nonzero().squeeze(1))
    out = method.compress(tokens)
    case.expect("keep_idx", kept(out))
    case.expect("out_tokens", out.features, atol=2e-5, rtol=1e-4, need=True)


def holov(case: Any) -> None:
    info, features, attention = case.info, case.input("features"), case.input("attention")
    runs = cut(len(features), info["chunks"])
    lengths = [length for _, length in runs]
    parts = [torch.arange(start, start + length) for start, length in runs]
    source = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    real = torch.arange(source.shape[1]) < torch.tensor(lengths)[:, None]
    scores = run_scores(features[source], attention[source], real, info["alpha"])
    quota, granted = quotas(scores[None], [lengths], [info["tokens"]])
    case.expect("quota", quota[0])
    order = []  # a run that its quota covers is kept whole, others by falling attention
    for part, count, length in zip(parts, quota[0].tolist(), lengths, strict=True):
        best = attention[part].argsort(descending=True, stable=True)[:count]
        order.append(part if count >= length else part[best])
    order = torch.cat(order)
    case.expect("keep_idx", order)
    zeros = torch.zeros(info["zero_rows"], features.shape[1])
    tokens = torch.cat([features[order], zeros])
    case.expect("out_tokens", tokens, atol=2e-5, rtol=1e-4, need=True)
    method = create_method("holov", tokens=info["tokens"], runs=info["chunks"])
    out = set(kept(method.compress(tokens_of(features, {"attention": attention}))).tolist())
    if len(out) != info["tokens"] or not (out >= set(order.tolist())):
        raise ValueError("kept: not the official patches, and others in place of zero rows")


def tome(case: Any) -> None:
    info, features = case.info, case.input("features")
    if info["method"] == "tomesd":
        return tomesd(case)
    size, valid = len(features), torch.ones(1, len(features), dtype=torch.bool)
    metric = case.input("metric")
    place, main = merge_pairs(metric[None], valid, [size], [info["rounds"]])
    left = size - sum(info["rounds"])
    count = torch.bincount(place[0], minlength=left).float()
    sums = torch.zeros(left, features.shape[1]).index_add(0, place[0], features)
    case.expect("member", place[0])
    case.expect("size", count)
    case.expect("out_tokens", sums / count[:, None], atol=2e-5, rtol=1e-4, need=True)
    if len(info["rounds"]) == 1:  # as many as the method takes in its first
        method = create_method("tome", tokens=left, metric="keys")
        out = method.compress(tokens_of(features, {"key_mean": metric}))
        order = torch.full((size,), -1)
        order[kept(out)] = torch.arange(left)
        tokens = out.features[order[main[0, :left]]]
        case.expect("out_tokens", tokens, atol=2e-5, rtol=1e-4)


def tomesd(case: Any) -> None:
    info, features = case.info, case.input("features")
    tokens = tokens_of(features, {}, tuple(info["grid"]))
    down, across = torch.tensor([info["stride_yx"]]).unbind(1)
    to = destinations(tokens.valid, tokens.patch_grid, down, across)
    case.expect("dst_idx", to[0].nonzero().squeeze(1))
    left, cell = len(features) - info["r"], tuple(info["stride_yx"])
    out = create_method("tome", tokens=left, variant="tomesd", cell=cell).compress(tokens)
    case.expect_rows("out_tokens", out.features, atol=2e-5, rtol=1e-4)


def pixelprune(case: Any) -> None:
    info, pixels = case.info, case.input("pixels")
    features = torch.zeros(len(pixels), 1)
    tokens = tokens_of(features, {"pixels": pixels}, tuple(info["grid"]))
    patch = kept(create_method("pixelprune", tau=info["threshold"]).compress(tokens))
    case.expect_value("kept", len(patch), info["kept"])
    case.expect("keep_idx", patch, need=True)


def prunesid(case: Any) -> None:
    tokens = case.info["tokens"] - 1  # without CLS
    attention = case.input("cls_attention").mean(0)
    image = tokens_of(case.input("hidden")[1:], {"attention": attention})
    method = create_method("prunesid", tokens=tokens)
    parts = method.plan(ImageBatch([image], [method]), [tokens])
    group, rank, left, quota = (part[0] for part in parts)
    case.expect("group", group)
    case.expect("kept", left)
    case.expect("quota", quota)
    patch = kept(method.compress(image))
    order = (group * len(rank) + rank)[patch].argsort()
    case.expect("keep_idx", patch[order], need=True)


RUNNERS = {
    "fv": fastervlm,
    "vz": visionzip,
    "hp": hiprune,
    "vp": vispruner,
    "pm": prumerge,
    "vs": vscan,
    "hv": holov,
    "to": tome,
    "px": pixelprune,
    "ps": prunesid,
}
