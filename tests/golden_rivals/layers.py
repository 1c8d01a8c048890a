"""Runners of the golden cases of methods inside the language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.layer_views import HandView, rotated, seen_of
from vtc.layers import Heads
from vtc.methods.dart import Dart
from vtc.methods.feather import Feather
from vtc.methods.layer_method import LayerMethod
from vtc.methods.sparsevlm import SparseVLM
from vtc.registry import create_method

DEPTH = 32


def line(case: Any) -> tuple[Tensor, slice]:
    """Which image each token of the one row is of, and where it stands."""
    info = case.info
    size = info.get("image_tokens") or info["grid"][0] * info["grid"][1]
    where = slice(info["image_start"], info["image_start"] + size)
    image = torch.full((1, info["sequence"]), -1)
    image[:, where] = 0
    return image, where


def counts_of(method: LayerMethod, tokens: int, cut: int = 0) -> Tensor:
    """What the method itself says is to be left, `[1, 1]`."""
    return torch.tensor([[method.counts(tokens, DEPTH)[cut]]])


def given(case: Any) -> Heads:
    """The case's queries and keys."""
    query, key = case.input("query")[None], case.input("key")[None]
    return Heads(query, key, query.shape[-1] ** -0.5)


def made(case: Any, hidden: Tensor, rotary: bool) -> Heads:
    """Queries and keys from hidden states `[B, L, D]` and the case's weights."""
    normed = hidden * (hidden.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * case.input("norm")
    out = []
    for name in ("q_weight", "k_weight"):
        x = normed @ case.input(name).T
        x = x.unflatten(-1, (-1, case.info["head_dim"])).transpose(1, 2)
        out.append(rotated(x, case.info.get("rope_base", 10000)) if rotary else x)
    return Heads(*out, case.info["head_dim"] ** -0.5)


def fastv(case: Any) -> None:
    image, where = line(case)
    method = create_method("fastv", layer_retention=1 - case.info["fastv_r"])
    assert isinstance(method, LayerMethod)
    counts = counts_of(method, where.stop - where.start)
    case.expect_value("kept", int(counts), case.info["kept"])
    seen = seen_of(image, counts)
    view = HandView(seen, torch.zeros(*image.shape, 1), {("before", True): given(case)})
    score, _ = method.attention_asked(view, "before")
    case.expect("image_score", score[0, where], atol=1e-6, need=True)
    case.expect("keep_index", method.choose(view).keep[0].nonzero().squeeze(1), need=True)


def pyramiddrop(case: Any) -> None:
    info, hidden, valid = case.info, case.input("hidden"), case.input("mask")
    stage, start = info["stage"], case.input("image_start").tolist()
    method = create_method("pyramiddrop", ratios=info["ratios"])
    assert isinstance(method, LayerMethod)
    before = case.input("image_tokens_before").tolist()
    image = torch.full(valid.shape, -1)
    for row, (at, now) in enumerate(zip(start, info["tokens_now"], strict=True)):
        if at >= 0:
            image[row, at : at + now] = 0
    counts = torch.tensor([[method.counts(n, DEPTH)[stage]] for n in before])
    case.expect_value("tokens next", counts.flatten().tolist() == info["tokens_next"], True)
    asking, labels = None, None
    if info["training"]:
        labels = case.input("labels")
        answers = (labels[:, :-1] == -100) & (labels[:, 1:] != -100)
        column = torch.arange(answers.shape[1]).expand_as(answers)
        asking = torch.where(answers, column, -1)
    seen = seen_of(image, counts, valid=valid, asking=asking, cut=stage)
    view = HandView(seen, hidden, {("here", True): made(case, hidden, True)})
    keep = method.choose(view).keep & valid
    sizes = keep.sum(1)
    mask = torch.arange(int(sizes.max())) < sizes[:, None]

    def left(values: Tensor, fill: float) -> Tensor:
        out = values.new_full((*mask.shape, *values.shape[2:]), fill)
        out[mask] = values[keep]
        return out

    case.expect("out_hidden", left(hidden, 0), need=True)
    case.expect("out_mask", mask, need=True)
    # officially what is left is numbered afresh
    case.expect("out_position", torch.where(mask, torch.arange(mask.shape[1]), 0))
    if labels is not None:
        case.expect("out_labels", left(labels, -100), need=True)


def sparsevlm(case: Any) -> None:
    image, where = line(case)
    method = SparseVLM(kept=(case.info["kept"],) * 3)
    embeds, hidden = case.input("embeds")[None], case.input("hidden")[None]
    counts = counts_of(method, where.stop - where.start)
    marks = method.start(seen_of(image, counts, layer=0), embeds)
    seen = seen_of(image, counts, marks=marks)
    view = HandView(seen, hidden, {("before", True): given(case)})
    assert marks is not None
    raters = marks[..., 0] > 0
    case.expect("rater_index", raters[0].nonzero().squeeze(1), need=True)
    score = method.rate(view, raters, int(raters.sum()))
    case.expect("image_score", score[0, where], atol=1e-6, need=True)
    sets, choice = method.sets(view), method.choose(view)
    assert choice.values is not None
    case.expect("kept_mask", sets.kept[0, where], need=True)

    # officially the clusters stand behind the kept tokens, by peak score, and all are numbered afresh
    merged = sets.members[0, sets.order[0, : case.info["merged"]]]
    column = torch.arange(image.shape[1])
    order = torch.cat(
        [column[: where.start], sets.kept[0].nonzero().squeeze(1), merged, column[where.stop :]]
    )
    case.expect_value("left", int(choice.keep.sum()), len(order))
    if not bool(choice.keep[0, order].all()):
        raise AssertionError("a token of the official result was dropped")
    case.expect("out_hidden", choice.values[0, order], atol=1e-5, need=True)
    case.expect("out_position", torch.arange(len(order)))


def dart(case: Any) -> None:
    info, order = case.info, case.input("pivot_order")
    image, where = line(case)
    tokens = where.stop - where.start
    number = info["max_num_truncation"]
    share = number / tokens if number else 1 - info["reduction_ratio"]

    class Walked(Dart):
        """With the official order of turns, which is that of a Python set."""

        def pivots(self, view: Any) -> Tensor:
            own = super().pivots(view)
            if set(own.flatten().tolist()) != set(order.tolist()):
                raise AssertionError("other pivots")
            return order.expand_as(own)

    options = {"pivot_image": info["pivot_image"], "pivot_text": info["pivot_text"]}
    method = Dart(layer_retention=share, **options)
    counts = counts_of(method, tokens)
    case.expect_value("kept", int(counts), info["kept"])
    state, key = case.input("state")[None], case.input("key")[None]
    heads = Heads(key, key, 1.0)
    view = HandView(seen_of(image, counts), state, {("before", True): heads}, state)
    own = method.pivots(view)[0, 0]
    case.expect("pivot_image_index", own[: info["pivot_image"]], need=True)
    case.expect("pivot_text_index", own[info["pivot_image"] :], need=True)
    ways = [Walked(layer_retention=share, **options)] + [method] * info["order_free"]
    for way in ways:
        keep = way.choose(view).keep & (image >= 0)
        case.expect("keep_index", keep[0].nonzero().squeeze(1), need=True)


def feather(case: Any) -> None:
    info, hidden = case.info, case.input("hidden")[None]
    image, where = line(case)
    height, width = info["grid"]
    place = torch.full((*image.shape, 3), -1)
    place[0, where] = torch.tensor([[0, i // width, i % width] for i in range(height * width)])
    method = Feather(attended=info["ratio"], stride=info["stride"])
    seen = seen_of(image, counts_of(method, height * width), place=place)
    view = HandView(seen, hidden, {("before", False): made(case, hidden, False)})
    score, _ = method.attention_asked(view, "before", rotary=False, among=image >= 0)
    case.expect("image_score", score[0, where], atol=1e-6, need=True)
    keep = method.choose(view).keep[0, where]
    case.expect("keep_index", keep.nonzero().squeeze(1), need=True)


RUNNERS = {
    "fastv_": fastv,
    "pdrop_": pyramiddrop,
    "sparsevlm_": sparsevlm,
    "dart_": dart,
    "feather_": feather,
}
