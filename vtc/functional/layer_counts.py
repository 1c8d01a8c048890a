"""How many tokens enter each layer of a language model that drops some on the way, and what that saves.

Layers are counted from 0. A cut is in front of a layer, and `counts` are the tokens of an image behind
each cut. Everything here is whole numbers on the host.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import pairwise

from vtc.errors import VTCError


def scaled_layers(layers: Sequence[int], of: int, depth: int) -> tuple[int, ...]:
    """The layers of a model of depth `of`, at the same share of another depth.

    Each is rounded to the nearest layer, halves to the deeper one, and is at least 1 and behind the one
    before it.

    Raises:
        VTCError: they do not fit into so few layers.
    """
    out: list[int] = []
    for layer in layers:
        near = (2 * layer * depth + of) // (2 * of)
        out.append(max(near, out[-1] + 1 if out else 1))
    if out[-1] >= depth:
        out = [min(layer, depth - len(out) + nth) for nth, layer in enumerate(out)]
    if out[0] < 1:
        raise VTCError(
            f"layers: {len(layers)} cut(s) do not fit into a language model of {depth} layer(s), whose "
            "first one sees everything"
        )
    return tuple(out)


def per_layer(tokens: int, cuts: Sequence[int], counts: Sequence[int], depth: int) -> list[int]:
    """How many of an image's tokens enter each layer."""
    spans = [b - a for a, b in pairwise((0, *cuts, depth))]
    return [n for n, span in zip((tokens, *counts), spans, strict=True) for _ in range(span)]


def average_retention(tokens: int, cuts: Sequence[int], counts: Sequence[int], depth: int) -> float:
    """Share of an image's tokens that enter a layer, the mean over layers; 1.0 of no tokens."""
    return sum(per_layer(tokens, cuts, counts, depth)) / (tokens * depth) if tokens else 1.0


def kv_retention(
    tokens: int, text: int, cuts: Sequence[int], counts: Sequence[int], depth: int
) -> float:
    """Size of the KV cache of a prompt, as a share of the uncut one's.

    Args:
        tokens: of all images of the prompt.
        text: tokens of the prompt that are of no image; they are in the cache of every layer.
    """
    whole = depth * (tokens + text)
    return (sum(per_layer(tokens, cuts, counts, depth)) + depth * text) / whole if whole else 1.0


def layer_flops(tokens: int, width: int, inner: int) -> int:
    """Multiply-adds of one decoder layer over a prompt: projections, attention and a gated MLP.

    `4 m d^2 + 2 m^2 d + 3 m d d_ff`, as papers on this subject count (FastV has 2 in place of 3, an MLP
    without gate). Grouped keys and the causal mask, which save some, are left out as they do.

    Args:
        tokens: that enter the layer, text included.
        width: of the hidden states.
        inner: of the MLP.
    """
    return tokens * width * (4 * width + 2 * tokens + 3 * inner)


def flops_retention(
    tokens: int,
    text: int,
    cuts: Sequence[int],
    counts: Sequence[int],
    depth: int,
    width: int,
    inner: int,
) -> float:
    """Multiply-adds of all layers over a prompt, as a share of the uncut one's; see `layer_flops`."""
    whole = depth * layer_flops(tokens + text, width, inner)
    if not whole:
        return 1.0
    lengths = [n + text for n in per_layer(tokens, cuts, counts, depth)]
    return sum(layer_flops(n, width, inner) for n in lengths) / whole


@functools.lru_cache(maxsize=4096)
def counts_within(
    tokens: int, cuts: tuple[int, ...], depth: int, shares: tuple[float, ...], total: int
) -> tuple[int, ...]:
    """The most tokens behind each cut with which no more than `total` enter all layers together.

    With one cut the count follows. With several it is one of a family: behind cut i stay
    `floor(tokens * shares[i] ** t)` tokens, with one `t` for all cuts. `t = 1` is the published
    schedule, `t = 0` drops nothing, and shares that are powers of one ratio stay powers of one. The
    counts fall as `t` rises, and the smallest `t` that is within the total is taken.

    Args:
        tokens: of the image, in front of any cut.
        cuts: layers, rising.
        shares: published share behind each cut, in (0, 1) where there are several.
        total: at least `cuts[0] * tokens`, which enter before the first cut.
    """
    spans = [b - a for a, b in pairwise((*cuts, depth))]
    left = total - cuts[0] * tokens
    if left >= tokens * sum(spans):
        return (tokens,) * len(cuts)
    if len(cuts) == 1:
        return (left // spans[0],)

    def at(power: float) -> tuple[int, ...]:
        return tuple(math.floor(tokens * share**power + 1e-9) for share in shares)

    low, high = 0.0, math.log(2 * tokens) / -math.log(max(shares))  # all, none
    while low < (middle := (low + high) / 2) < high:
        fits = sum(n * span for n, span in zip(at(middle), spans, strict=True)) <= left
        low, high = (low, middle) if fits else (middle, high)
    return at(high)
