"""How many tokens a method inside the language model leaves, and what that saves."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.methods.images import image
from vtc import VTCError, create_method
from vtc.functional.layer_counts import (
    average_retention,
    counts_within,
    flops_retention,
    kv_retention,
    layer_flops,
    per_layer,
    scaled_layers,
)
from vtc.methods.layer_method import LayerMethod
from vtc.methods.vtw import VTW
from vtc.registry import compared_methods

INSIDE = compared_methods(where="layers")
MOVABLE = [name for name in INSIDE if name != "vtw"]


def make(name: str, **options: Any) -> LayerMethod:
    method = create_method(name, **options)
    assert isinstance(method, LayerMethod)
    return method


# -- the papers' own counts ------------------------------------------------------------------------

#: method -> cuts of 32 layers, tokens of 576 behind each, average over layers in percent
PUBLISHED = {
    "fastv": ((2,), (288,), 53.125),
    "pyramiddrop": ((8, 16, 24), (288, 144, 72), 46.875),
    "sparsevlm": ((3, 7, 16), (309, 204, 113), 35.8507),
    "dart": ((2,), (132,), 27.7344),
    "vtw": ((15,), (0,), 46.875),
    "feather": ((8, 16), (217, 19), 36.0677),
    "v2drop": ((3, 17, 22), (288, 144, 1), 35.2105),
    "vscan_layers": ((16,), (192,), 66.6667),
}


def test_every_method_is_in_the_table():
    assert set(PUBLISHED) == set(INSIDE)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    method = make(name)
    cuts, counts = method.cuts(32), method.counts(576, 32)
    average = 100 * average_retention(576, cuts, counts, 32)
    assert (cuts, counts, round(average, 4)) == PUBLISHED[name]
    assert method.counts_itself and method.asked(image()) is None


def test_docs_state_them():
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    part = text.split("| method | cuts of 32 layers |")[1]
    found = re.findall(r"^\| `(\w+)` \| ([\d, ]+) \| ([\d.]+) % \|$", part, re.MULTILINE)
    want = [(n, ", ".join(map(str, cuts)), f"{x:.1f}") for n, (cuts, _, x) in PUBLISHED.items()]
    assert found == want


@given(tokens=st.integers(1, 4000), share=st.floats(0.001, 1))
def test_roundings_are_the_papers_own(tokens, share):
    assert make("fastv", layer_retention=share).counts(tokens, 32) == (round(tokens * share),)
    assert make("vscan_layers").counts(tokens, 32) == (tokens // 3,)
    assert make("pyramiddrop").counts(tokens, 32) == tuple(
        int(tokens * ratio) for ratio in (0.5, 0.25, 0.125)
    )
    assert make("dart").counts(tokens, 32) == (min(tokens, 4 + 8 * (tokens // 36)),)
    for half in (1, 3, 5):  # half to even
        assert make("fastv").counts(half, 32) == ({1: 0, 3: 2, 5: 2}[half],)


@pytest.mark.parametrize(
    "kept, want",
    [((300, 200, 110), (309, 204, 113)), ((66, 30, 17), (82, 32, 18))],
)
def test_clusters_of_sparsevlm_come_on_top(kept, want):
    def by_hand(now: int) -> list[int]:
        out = []
        for best in kept:
            best = min(best, now - 1)
            again = int(0.3 * (now - best)) + 1
            now = best + int(again / 10) + 1
            out.append(now)
        return out

    assert make("sparsevlm", kept=kept).counts(576, 32) == want == tuple(by_hand(576))
    for tokens in (1, 2, 30, 100, 301):
        assert make("sparsevlm", kept=kept).counts(tokens, 32) == tuple(by_hand(tokens))
    assert make("sparsevlm", kept=kept, recycle=False).counts(576, 32) == kept


# -- budgets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MOVABLE)
@given(tokens=st.integers(1, 600), depth=st.integers(4, 48), retention=st.floats(0.01, 1))
def test_a_retention_is_the_average_over_layers(name, tokens, depth, retention):
    method = make(name, retention=retention)
    cuts = method.cuts(depth)
    total = int(retention * tokens * depth + 1e-9)
    if total < cuts[0] * tokens:
        with pytest.raises(VTCError, match=r"^retention: got .* the average over layers cannot be"):
            method.counts(tokens, depth)
        return
    counts = method.counts(tokens, depth)
    entered = per_layer(tokens, cuts, counts, depth)
    assert sum(entered) <= total and entered == sorted(entered, reverse=True)
    assert len(counts) == len(cuts) and all(0 <= n <= tokens for n in counts)
    if len(cuts) == 1:  # r = (R N - K) / (N - K), rounded down
        r = (Fraction(total, tokens) - cuts[0]) / (depth - cuts[0])
        assert counts == (int(tokens * r),)
    if retention == 1:
        assert counts == (tokens,) * len(cuts)


@given(
    tokens=st.integers(1, 90),
    shares=st.lists(st.floats(0.01, 0.99), min_size=2, max_size=4),
    spans=st.lists(st.integers(1, 6), min_size=5, max_size=5),
    left=st.floats(0, 1),
)
def test_several_cuts_against_brute_force(tokens, shares, spans, left):
    """Of all schedules of the family that are within the budget, the one that leaves most."""
    shares = tuple(sorted(shares, reverse=True))
    cuts = tuple(sum(spans[: i + 1]) for i in range(len(shares)))
    depth = sum(spans[: len(shares) + 1])
    behind = spans[1 : len(shares) + 1]
    total = cuts[0] * tokens + int(left * tokens * sum(behind))
    got = counts_within(tokens, cuts, depth, shares, total)

    def cost(counts: Any) -> int:
        return cuts[0] * tokens + sum(n * span for n, span in zip(counts, behind, strict=True))

    # counts change where tokens * share ** t is a whole number: every schedule is one of these
    from math import floor, log

    turns = {log(n / tokens) / log(s) for s in shares for n in range(1, tokens + 1)}
    family = {
        tuple(floor(tokens * s ** max(0, t + d) + 1e-9) for s in shares)
        for t in turns
        for d in (-1e-7, 0, 1e-7)
    }
    family.add((0,) * len(shares))
    best = max(cost(counts) for counts in family if cost(counts) <= total)
    assert cost(got) <= total
    assert cost(got) >= best


@given(ratio=st.floats(0.1, 0.9), retention=st.floats(0.3, 0.95))
def test_a_geometric_schedule_stays_one(ratio, retention):
    method = make("pyramiddrop", ratios=(ratio, ratio**2, ratio**3), retention=retention)
    first, second, third = method.counts(10**6, 32)
    assert second == pytest.approx(first**2 / 10**6, abs=3)
    assert third == pytest.approx(first**3 / 10**12, abs=3)
    assert average_retention(10**6, (8, 16, 24), (first, second, third), 32) == pytest.approx(
        retention, abs=1e-5
    )


@pytest.mark.parametrize("name", MOVABLE)
@given(tokens=st.integers(1, 600), wanted=st.integers(1, 700))
def test_tokens_are_an_average_too(name, tokens, wanted):
    method = make(name, tokens=wanted)
    least = method.cuts(32)[0] * tokens
    if 32 * min(wanted, tokens) < least:
        with pytest.raises(
            VTCError, match=rf"^tokens: got {wanted}, but .* of an image's {tokens};"
        ):
            method.counts(tokens, 32)
    else:
        entered = per_layer(tokens, method.cuts(32), method.counts(tokens, 32), 32)
        assert sum(entered) <= 32 * wanted
    if wanted > tokens:
        with pytest.raises(VTCError, match=f"^tokens: got {wanted}, but the image has {tokens}"):
            make(name, tokens=wanted, strict=True).counts(tokens, 32)


@pytest.mark.parametrize("name", [n for n in MOVABLE if n != "dart"])
@given(share=st.floats(0.01, 1), tokens=st.integers(1, 2000))
def test_the_share_behind_the_last_cut(name, share, tokens):
    counts = make(name, layer_retention=share).counts(tokens, 32)
    exact = round(tokens * share) if name == "fastv" else int(tokens * share)
    assert counts[-1] == exact and list(counts) == sorted(counts, reverse=True)


def test_the_error_says_what_the_cuts_allow():
    with pytest.raises(VTCError) as error:
        make("fastv", retention=0.05).counts(576, 32)
    assert str(error.value).startswith(
        "retention: got 0.05, but 2 of 32 layers come before the first cut of 'fastv' and see "
        "everything, so the average over layers cannot be below 0.0625; ask for more, cut earlier "
        "with `layer`,"
    )
    assert make("fastv", retention=0.0625).counts(576, 32) == (0,)
    with pytest.raises(
        VTCError, match="cannot be below 0.25; ask for more, cut earlier with `layers`"
    ):
        make("pyramiddrop", retention=0.2).counts(576, 32)


def test_budgets_of_images_can_differ():
    method = make("fastv", retention=[0.5, 0.25])
    assert [method.for_image(i, 2).counts(320, 32) for i in (0, 1)] == [(149,), (64,)]
    with pytest.raises(VTCError, match="needs for_image"):
        method.counts(320, 32)


# -- where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers, depth, want",
    [
        ((2,), 32, (2,)),
        ((2,), 40, (3,)),  # 2.5, halves to the deeper
        ((2,), 28, (2,)),
        ((2,), 4, (1,)),
        ((16,), 28, (14,)),
        ((8, 16, 24), 28, (7, 14, 21)),
        ((3, 7, 16), 4, (1, 2, 3)),  # 0.4, 0.9, 2: one behind the other
        ((3, 17, 22), 5, (1, 3, 4)),
        ((15,), 2, (1,)),
        ((28,), 4, (3,)),
    ],
)
def test_layers_at_the_same_share_of_another_depth(layers, depth, want):
    assert scaled_layers(layers, 32, depth) == want


@given(
    layers=st.lists(st.integers(1, 31), min_size=1, max_size=4, unique=True),
    depth=st.integers(1, 80),
)
def test_scaled_layers_rise_and_fit(layers, depth):
    layers = sorted(layers)
    if depth <= len(layers):
        with pytest.raises(VTCError, match=rf"do not fit into a language model of {depth} layer"):
            scaled_layers(layers, 32, depth)
        return
    got = scaled_layers(layers, 32, depth)
    assert list(got) == sorted(set(got)) and 1 <= got[0] and got[-1] < depth
    if depth == 32:
        assert list(got) == layers


def test_layers_that_are_named_are_as_they_are():
    assert make("fastv", layer=3).cuts(40) == (3,)
    assert make("pyramiddrop", layers=[1, 2, 4]).cuts(5) == (1, 2, 4)
    assert make("pyramiddrop", layers=[1, 4], ratios=[0.5, 0.1]).cuts(5) == (1, 4)
    for options, message in (
        ({"name": "fastv", "layer": 5}, "layer: got 5, but the language model has 5 layers"),
        (
            {"name": "pyramiddrop", "layers": [1, 2, 5]},
            "layers: got 5, but the .* allowed are 1 to 4",
        ),
    ):
        with pytest.raises(VTCError, match=message):
            make(**options).cuts(5)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("fastv", {"layer": 0}, "layer: got 0, allowed are whole numbers >= 1"),
        (
            "fastv",
            {"layer_retention": 0},
            r"layer_retention: got 0, allowed are numbers in \(0, 1\]",
        ),
        (
            "fastv",
            {"layer_retention": 0.5, "retention": 0.5},
            "layer_retention: got 0.5 beside ret",
        ),
        (
            "fastv",
            {"layer_retention": 0.5, "tokens": 5},
            "layer_retention: got 0.5 beside tokens=5",
        ),
        ("fastv", {"video": "frame"}, "video: got 'frame', but inside the language model"),
        ("fastv", {"scope": "tile"}, "scope: got 'tile', allowed are image, row"),
        ("pyramiddrop", {"layers": [8, 8, 9]}, "layers: got .* 3 rising whole numbers >= 1"),
        ("pyramiddrop", {"layers": [0, 8, 9]}, "layers: got .* 3 rising whole numbers >= 1"),
        ("pyramiddrop", {"layers": 8}, "layers: got 8, allowed are 3 rising"),
        ("pyramiddrop", {"ratios": [0.5, 0.7]}, "ratios: got .* falling numbers"),
        ("pyramiddrop", {"ratios": [1.0]}, "ratios: got .* falling numbers"),
        ("pyramiddrop", {"ratios": 0.5}, "ratios: got 0.5, allowed are falling numbers"),
        ("pyramiddrop", {"ratios": [0.5]}, "layers: 'pyramiddrop' has 1 cuts here, say"),
        ("sparsevlm", {"kept": [3, 2]}, "kept: got .* allowed are 3 whole numbers"),
        ("sparsevlm", {"kept": [3, 2, 1], "retention": 0.5}, "kept: got .* beside a budget"),
        ("sparsevlm", {"heads": 0}, "heads: got 0, allowed are whole numbers >= 1"),
        ("dart", {"pivot_image": 0}, "pivot_image: got 0, allowed are whole numbers >= 1"),
        ("feather", {"attended": 1.0}, r"attended: got 1.0, allowed are numbers in \(0, 1\)"),
        ("feather", {"stride": 0}, "stride: got 0, allowed are whole numbers >= 1"),
        ("vtw", {"tokens": 4}, "tokens: got 4, but 'vtw' drops all tokens at one layer"),
        ("vtw", {"layer_retention": 0.5}, "layer_retention: got 0.5, but 'vtw' drops all"),
        ("vtw", {"retention": [0.5, 0.4]}, "retention: got .* the same for all images"),
        ("vtw", {"retention": 0.5, "layer": 3}, "retention: got 0.5 beside layer=3"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(VTCError, match="^" + message):
        make(name, **options)


@given(retention=st.floats(0.01, 1), depth=st.integers(2, 48))
def test_the_budget_of_vtw_moves_its_layer(retention, depth):
    method = make("vtw", retention=retention)
    if retention * depth + 1e-9 < 1:
        with pytest.raises(VTCError, match="^retention: got"):
            method.cuts(depth)
        return
    (cut,), counts = method.cuts(depth), method.counts(100, depth)
    if retention == 1:
        assert counts == (100,)
    else:
        assert counts == (0,) and cut == min(int(retention * depth + 1e-9), depth - 1)


# -- what the plug-in asks, and what it saves --------------------------------------------------------


@pytest.mark.parametrize("name", INSIDE)
def test_the_prompt_keeps_its_length(name):
    tokens = image(crops=(2, 2))
    for options in ({}, {"retention": 0.75}, {"retention": 1.0}, {"layer_retention": 1.0}):
        method = make(name, **options)
        assert method.length(tokens) == method.length(tokens.packing) == tokens.packing.length
        assert method.is_identity(tokens) == (1.0 in options.values())
        whole = tokens.packing.length
        assert method.budget(tokens) == (int(0.75 * whole) if 0.75 in options.values() else whole)
        assert method.asked(tokens) == {0.75: int(0.75 * whole), 1.0: whole}.get(
            options.get("retention")
        )
    with pytest.raises(VTCError, match=f"method: '{name}' chooses inside the language model"):
        make(name).compress(tokens)


def test_savings_by_hand():
    """Four layers of 10 tokens and 5 of text, cut in front of layers 1 and 3."""
    cuts, counts = (1, 3), (6, 2)
    assert per_layer(10, cuts, counts, 4) == [10, 6, 6, 2]
    assert average_retention(10, cuts, counts, 4) == 24 / 40
    assert kv_retention(10, 5, cuts, counts, 4) == (15 + 11 + 11 + 7) / 60
    assert layer_flops(15, 8, 20) == 4 * 15 * 64 + 2 * 225 * 8 + 3 * 15 * 8 * 20
    want = sum(layer_flops(n, 8, 20) for n in (15, 11, 11, 7)) / (4 * layer_flops(15, 8, 20))
    assert flops_retention(10, 5, cuts, counts, 4, 8, 20) == want
    assert average_retention(0, cuts, (0, 0), 4) == kv_retention(0, 0, cuts, (0, 0), 4) == 1


def test_fastv_saves_what_its_paper_says():
    """45 % of the FLOPs at K = 2 and R = 50 %: LLaVA-1.5-13B, 576 image tokens and a short text."""
    saved = 1 - flops_retention(576, 64, (2,), (288,), 40, 5120, 13824)
    assert saved == pytest.approx(0.45, abs=0.03)


def test_vtw_is_a_layer_method():
    assert issubclass(VTW, LayerMethod) and not VTW.reads_question
