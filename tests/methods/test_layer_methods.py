"""Which tokens stay behind a cut inside the language model, against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.pretend import OnDevice, PretendDevice, taken_back
from tests.layer_views import HEAD_WIDTH, HandView, Row, batch, row
from tests.methods import plain_layers as plain
from tests.methods.test_layer_budgets import INSIDE, make
from vtc.layers import Choice, Heads
from vtc.methods.layer_method import LayerMethod

DEPTH = 32
#: prompts with one image, none, several, and one behind the question
GRIDS: list[list[tuple[int, int]]] = [[(6, 7)], [], [(4, 4), (5, 9), (1, 1)], [(9, 8)]]
LOOPED = [*plain.KEPT, "sparsevlm"]


def budget(name: str, retention: float = 0.6) -> LayerMethod:
    options: dict[str, Any] = {"retention": retention}
    if name == "vtw":
        options = {}
    return make(name, **options)


def prompts(seed: int = 0) -> list[Row]:
    return [row(grids, seed=seed + i, between=4 + i) for i, grids in enumerate(GRIDS)]


def counts_of(method: LayerMethod, rows: list[Row], cut: int = 0) -> list[list[int]]:
    return [
        [method.counts(len(columns), DEPTH)[cut] for columns in plain.images(one).values()]
        for one in rows
    ]


def chosen(method: LayerMethod, view: HandView, embeds: Tensor) -> Choice:
    """What the method chooses, with what it remembers from the embeddings."""
    marks = method.start(replace(view.seen, layer=0), embeds)
    view.seen = replace(view.seen, marks=marks)
    return method.choose(view)


def together(
    method: LayerMethod, rows: list[Row], counts: list[list[int]], **options: Any
) -> list[tuple[set[int], Tensor | None]]:
    """Image columns that stay of each row of a batch, and the row's hidden states."""
    view, where, embeds = batch(rows, counts, **options)
    keep, values = chosen(method, view, embeds)
    assert keep.dtype == torch.bool and keep.shape == view.seen.image.shape
    out = []
    for b, (one, place) in enumerate(zip(rows, where, strict=True)):
        here = keep[b, place]
        assert bool(here[one.image < 0].all()), "text stays"
        left = set((here & (one.image >= 0)).nonzero().squeeze(1).tolist())
        out.append((left, None if values is None else values[b, place]))
    return out


def test_every_method_has_a_plain_reference():
    assert set(LOOPED) == set(INSIDE)


@pytest.mark.parametrize("name", plain.KEPT)
@given(seed=st.integers(0, 10**6), side=st.sampled_from(["left", "right"]), more=st.integers(0, 3))
@settings(max_examples=15)
def test_what_stays_is_what_loops_say(name, seed, side, more):
    method, rows = budget(name), prompts(seed)
    counts = counts_of(method, rows)
    got = together(method, rows, counts, side=side, more=more)
    for one, some, (left, _) in zip(rows, counts, got, strict=True):
        assert left == plain.KEPT[name](one, some)
        for number, columns in plain.images(one).items():
            assert len(left & set(columns)) == some[number], "the budget, exactly"


@given(seed=st.integers(0, 10**6), side=st.sampled_from(["left", "right"]))
@settings(max_examples=15)
def test_sparsevlm_is_what_loops_say(seed, side):
    kept = (18, 9, 5)
    method, rows = make("sparsevlm", kept=kept), prompts(seed)
    got = together(method, rows, counts_of(method, rows), side=side)
    for one, (left, values) in zip(rows, got, strict=True):
        want, means = plain.sparsevlm(one, [kept[0]] * 3)
        assert left == want
        assert values is not None
        for column in range(len(one)):
            expected = means.get(column, one.vectors["hidden"][column].double())
            torch.testing.assert_close(values[column].double(), expected, rtol=1e-5, atol=1e-5)


def test_sparsevlm_in_proportion_and_by_a_budget():
    """Without a budget 300 of 576, of the image in front of any cut; a budget counts clusters too."""
    rows = prompts(5)
    method = make("sparsevlm")
    got = together(method, rows, counts_of(method, rows))
    for one, (left, _) in zip(rows, got, strict=True):
        sizes = [len(columns) for columns in plain.images(one).values()]
        want = set().union(*(plain_sparse(one, number, n) for number, n in enumerate(sizes)))
        assert left == want
    # every count can be had
    one = [row([(8, 8)], seed=1)]
    for wanted in range(65):
        method = make("sparsevlm", retention=0.5)
        [(left, values)] = together(method, one, [[wanted]])
        assert len(left) == wanted
        if wanted == 64:
            assert values is None or torch.equal(values, one[0].vectors["hidden"])


def plain_sparse(one: Row, number: int, tokens: int) -> set[int]:
    left, _ = plain.sparsevlm(one, [tokens * 300 // 576 if i == number else 0 for i in range(3)])
    return left & set(plain.images(one)[number])


@pytest.mark.parametrize("heads", [None, 2])
def test_attention_is_divided_by_what_positions_give(heads):
    """Element by element, with the angles of Llama's rotary embedding."""
    one = row([(7, 7)], seed=3)
    columns = [s for s in range(len(one)) if one.image[s] >= 0]
    method = make("sparsevlm", kept=(20, 9, 5), recycle=False, heads=heads, unbias=True)
    view, _, embeds = batch([one], [[20]])
    raters = method.raters(view.seen, embeds)[0].nonzero().flatten().tolist()
    rows = view.attention(torch.tensor([raters]), "before")[0].tolist()  # [H, R, S]
    half = HEAD_WIDTH // 2
    for rater_row, rater in enumerate(raters):
        turns = [
            sum(2 * math.cos((rater - s) * 10000 ** (-k / half)) for k in range(half))
            * HEAD_WIDTH**-0.5
            for s in range(rater + 1)
        ]
        total = sum(math.exp(turn) for turn in turns)
        for head in rows:
            for s, turn in enumerate(turns):
                head[rater_row][s] /= math.exp(turn) / total
    each = [{s: sum(r[s] for r in head) for s in columns} for head in rows]
    looks = sorted(range(len(each)), key=lambda h: -sum(each[h].values()))[:heads]
    want = plain.best({s: sum(each[h][s] for h in looks) for s in columns}, 20)
    [(left, _)] = together(method, [one], [[20]])
    assert left == set(want)
    [(biased, _)] = together(replace(method, unbias=False), [one], [[20]])
    assert biased != left


def test_heads_that_rate():
    """The heads whose raters look at the image most, by hand."""
    one = row([(6, 6)], seed=3)
    view, _, embeds = batch([one], [[20]])
    method = make("sparsevlm", kept=(20, 9, 5), recycle=False, heads=2)
    keep = chosen(method, view, embeds).keep[0]
    rows = plain.attention(one, plain.raters(one), "before")  # [H, S]
    columns = plain.images(one)[0]
    heads = rows[:, columns].sum(1).topk(2).indices
    want = plain.best({s: float(rows[heads, s].mean()) for s in columns}, 20)
    assert set((keep & (one.image >= 0)).nonzero().squeeze(1).tolist()) == set(want)
    every = make("sparsevlm", kept=(20, 9, 5), recycle=False, heads=64)  # more than there are
    usual = make("sparsevlm", kept=(20, 9, 5), recycle=False)
    assert torch.equal(chosen(every, view, embeds).keep, chosen(usual, view, embeds).keep)


def test_what_feather_leaves_without_a_budget():
    """The best 30 % united with the grid; at the second cut 9 % of what is left."""
    rows = prompts(2)
    method = make("feather")
    got = together(method, rows, counts_of(method, rows))
    later = []
    for one, (left, _) in zip(rows, got, strict=True):
        among = {s for columns in plain.images(one).values() for s in columns}
        score = plain.attention(one, one.asking, "before", False, among).mean(0)
        want: set[int] = set()
        for columns in plain.images(one).values():
            want |= set(plain.best({s: float(score[s]) for s in columns}, int(len(columns) * 0.3)))
            want |= {s for s in columns if one.place[s, 1] % 3 == 0 and one.place[s, 2] % 3 == 0}
        assert left == want
        keep = torch.tensor([s in left or int(one.image[s]) < 0 for s in range(len(one))])
        later.append(one.left(keep))
    got = together(method, later, counts_of(method, later, 1), cut=1)
    for one, (left, _) in zip(later, got, strict=True):
        among = {s for columns in plain.images(one).values() for s in columns}
        score = plain.attention(one, one.asking, "before", False, among).mean(0)
        sizes = [int(len(c) * 0.3 * 0.3) for c in plain.images(one).values()]
        assert left == plain.ranked(one, sizes, score)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("options", [{}, {"retention": 0.7}])
@pytest.mark.parametrize("cut", [0, 1])
def test_a_batch_is_its_rows(name, options, cut):
    method = make(name, **options)
    if cut >= len(method.cuts(DEPTH)):
        return
    rows = prompts(7)
    counts = counts_of(method, rows, cut)
    for side in ("left", "right"):
        got = together(method, rows, counts, side=side, more=2, cut=cut)
        for one, some, (left, values) in zip(rows, counts, got, strict=True):
            [(alone, own)] = together(method, [one], [some or [0]], cut=cut)
            assert left == alone
            if values is not None:
                own = one.vectors["hidden"] if own is None else own
                torch.testing.assert_close(values, own)


@pytest.mark.parametrize("name", INSIDE)
def test_images_of_a_row_compete_together_where_that_is_asked_for(name):
    """As the same tokens would as one image, of the budgets' sum."""
    method = make(name, scope="row", **({} if name == "vtw" else {"retention": 0.6}))
    rows = [prompts(4)[2]]
    counts = counts_of(method, rows)
    [(left, _)] = together(method, rows, counts)
    assert len(left) == sum(counts[0])
    joined = replace(rows[0], image=rows[0].image.clamp(max=0))
    [(want, _)] = together(method, [joined], [[sum(counts[0])]])
    assert left == want


@pytest.mark.parametrize("name", [n for n in INSIDE if n != "vtw"])
def test_a_whole_budget_leaves_everything_as_it_is(name):
    method = make(name, retention=1.0)
    rows = prompts(1)
    for one, (left, values) in zip(
        rows, together(method, rows, counts_of(method, rows)), strict=True
    ):
        assert left == {s for columns in plain.images(one).values() for s in columns}
        assert values is None or torch.equal(values, one.vectors["hidden"])


@pytest.mark.parametrize("name", [n for n in INSIDE if n != "vtw"])
def test_ties_go_to_the_lower_place(name):
    """All tokens alike: the first ones stay, but for the grid and pivots, which come first too."""
    one = row([(6, 6)], seed=0)
    one.vectors = {k: torch.ones_like(v) for k, v in one.vectors.items()}
    one.heads = {k: (torch.ones_like(q), torch.ones_like(x)) for k, (q, x) in one.heads.items()}
    method = make(name, retention=0.5)
    [(left, _)] = together(method, [one], [[9]])
    columns = plain.images(one)[0]
    if name == "feather":
        grid = [s for s in columns if one.place[s, 1] % 3 == 0 and one.place[s, 2] % 3 == 0]
        assert left == {*grid, *[s for s in columns if s not in grid][:5]}
    else:
        assert left == set(columns[:9])


ASKING = [name for name in INSIDE if make(name).reads_question]


@pytest.mark.parametrize("name", ASKING)
def test_several_tokens_ask_under_labels(name):
    """The mean over them, and a row that nothing asks is left whole."""
    rows = prompts(9)
    rows[0].asking = [len(rows[0]) - 1, len(rows[0]) - 3]
    rows[3].asking = []
    method = make(name, kept=(18, 9, 5)) if name == "sparsevlm" else budget(name)
    counts = counts_of(method, rows)
    got = together(method, rows, counts)
    want = (
        plain.sparsevlm(rows[0], [18])[0]
        if name == "sparsevlm"
        else plain.KEPT[name](rows[0], counts[0])
    )
    assert got[0][0] == want
    whole = {s for columns in plain.images(rows[3]).values() for s in columns}
    if name == "dart":  # asks by the text behind the image, which is there
        assert len(got[3][0]) == counts[3][0]
    else:
        assert got[3][0] == whole
    values = got[3][1]
    assert values is None or torch.equal(values, rows[3].vectors["hidden"])


@pytest.mark.parametrize("name", ["sparsevlm", "dart"])
def test_what_comes_behind_the_asking_token_does_not_rate(name):
    """Answers under labels, and drafts of assisted decoding."""
    one = row([(6, 6)], seed=2)
    one.asking = [len(one) - 3]
    method = make(name, retention=0.6)
    [(left, _)] = together(method, [one], [[20]])
    other = row([(6, 6)], seed=2)
    other.asking = one.asking
    for value in (other.vectors["embeds"], *(k[0] for _, k in other.heads.values())):
        value[-2:] = 100.0
    [(same, _)] = together(method, [other], [[20]])
    assert left == same


@pytest.mark.parametrize("name", INSIDE)
def test_an_image_at_the_end_of_the_prompt(name):
    """No text behind it: the last token asks, and is of the image."""
    one = row([(5, 5)], between=0, seed=6)
    method = budget(name)
    counts = counts_of(method, [one])
    [(left, values)] = together(method, [one], counts)
    assert len(left) == counts[0][0]
    assert values is None or bool(values.isfinite().all())


def test_values_keep_their_dtype_and_gradient():
    one = row([(6, 6)], seed=2)
    view, _, embeds = batch([one], [[20]])
    method = make("sparsevlm", retention=0.6)
    half = replace(view, hidden=view.hidden.bfloat16())
    assert chosen(method, half, embeds).values.dtype == torch.bfloat16
    view.hidden.requires_grad_()
    choice = chosen(method, view, embeds)
    choice.values[choice.keep].sum().backward()
    assert bool((view.hidden.grad[~choice.keep].abs().sum(-1) > 0).any()), "merged tokens"


#: method -> operations of one cut on the device, with `start`, without a budget and with one; and how
#: often the host waits for it: for the number of the question's tokens, and for that of raters and of
#: recycled tokens. docs/kernels.md repeats them
STATED = {
    "fastv": (39, 39, 0),
    "pyramiddrop": (39, 39, 0),
    "sparsevlm": (315, 345, 2),
    "dart": (413, 413, 0),
    "vtw": (6, 6, 0),
    "feather": (53, 46, 0),
    "v2drop": (34, 34, 0),
    "vscan_layers": (39, 39, 0),
}


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("options", [{}, {"retention": 0.6}])
def test_a_cut_is_a_fixed_number_of_operations_on_the_device(name, options, monkeypatch):
    """However many rows, images and tokens there are; and what comes out is what the CPU gives."""
    monkeypatch.setenv("VTC_KERNELS", "torch")
    method, found = make(name, **options), set()
    for rows in (prompts(), [row([(9, 9), (1, 2)])] * 2, [row([(3, 3)] * 5)] * 6):
        counts = counts_of(method, rows)
        view, _, embeds = batch(rows, counts)
        monkeypatch.setattr(HandView, "attention", canned)
        want = chosen(method, view, embeds)
        view, _, embeds = batch(rows, counts)
        moved, there = on_device(view), OnDevice(embeds)
        with PretendDevice() as device:
            got = chosen(method, moved, there)
        assert not device.stops
        found.add((sum(device.launches.values()), device.reads))
        assert torch.equal(taken_back(got.keep), want.keep)
        assert (got.values is None) == (want.values is None)
        if got.values is not None:
            torch.testing.assert_close(taken_back(got.values), want.values)
    plain_count, budget_count, reads = STATED[name]
    assert found == {(budget_count if options else plain_count, reads)}


def on_device(view: HandView) -> HandView:
    """The view, of a device that is pretended."""
    seen = replace(
        view.seen,
        **{
            name: OnDevice(value)
            for name, value in vars(view.seen).items()
            if isinstance(value, Tensor)
        },
    )
    tables = {
        name: Heads(OnDevice(query), OnDevice(key), scale)
        for name, (query, key, scale) in view.tables.items()
    }
    vectors = [OnDevice(x) for x in (view.hidden, view.states, view.entered) if x is not None]
    return HandView(seen, vectors[0], tables, *vectors[1:])


def canned(view: HandView, rows: Tensor, *_: Any, mean: bool = False, **__: Any) -> Tensor:
    """Attention that costs nothing and needs no device: the hand-made one goes row by row."""
    generator = torch.Generator().manual_seed(0)
    size = view.seen.image.shape[1]
    shape = (len(rows), *([] if mean else [4]), rows.shape[1], size)
    values = torch.rand(shape, generator=generator)
    return OnDevice(values) if isinstance(rows, OnDevice) else values
