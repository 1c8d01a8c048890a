"""MMR: importance against likeness, pick by pick."""

from __future__ import annotations

import pytest

from tests.methods.images import image
from tests.methods.one_by_one import cosines, greedy, groups, kept
from vtc import VTCError, create_method

IMAGES = [image(), image(crops=(2, 2), size=(600, 300)), image(crops=(1, 2), has_cls=False, seed=2)]


@pytest.mark.parametrize("scope", ["image", "tile"])
@pytest.mark.parametrize("balance", [0, 0.5, 0.8, 1])
@pytest.mark.parametrize("tokens", IMAGES)
def test_picks_are_those_of_a_loop(tokens, balance, scope):
    method = create_method("mmr", tokens=24, balance=balance, scope=scope)
    like = cosines(tokens.features)
    raw = tokens.signals["importance"].double().flatten()
    want = []
    for each, count in groups(tokens, scope, 24):
        low, high = raw[each].min(), raw[each].max()

        def gain(picks, i, low=low, high=high):
            weight = float((raw[i] - low) / (high - low + 1e-6))
            if not picks:
                return weight
            return balance * weight - (1 - balance) * float(like[i, picks].max())

        want += greedy(each, count, gain)
    assert kept(method.compress(tokens)) == sorted(want)


def test_without_likeness_it_is_a_ranking_and_so_is_one_group():
    tokens = image(crops=(2, 2))
    best = tokens.signals["importance"].masked_fill(~tokens.valid, -1).flatten().topk(9).indices
    for options in ({"balance": 1}, {"together": 9}):
        out = create_method("mmr", tokens=9, **options).compress(tokens)
        assert kept(out) == sorted(best.tolist())


@pytest.mark.parametrize(
    "importance,has_cls,kinds",
    [
        ("attention", True, ["cls_attention"]),
        ("attention", False, ["attention_received"]),
        ("received", True, ["attention_received"]),
        ("norm", True, []),
        ("question", True, ["text_similarity"]),
    ],
)
def test_what_importance_reads(importance, has_cls, kinds):
    method = create_method("mmr", tokens=9, importance=importance)
    assert [r.kind for r in method.requests(has_cls).values()] == kinds


def test_norms():
    tokens = image()
    out = create_method("mmr", tokens=9, importance="norm", balance=1).compress(tokens)
    assert kept(out) == sorted(tokens.features[0].norm(dim=1).topk(9).indices.tolist())


def test_wrong_options():
    with pytest.raises(VTCError, match="balance: got 2, allowed are numbers from 0 to 1"):
        create_method("mmr", balance=2)
    with pytest.raises(VTCError, match="importance: got 'clss'"):
        create_method("mmr", importance="clss")
    with pytest.raises(VTCError, match="together: got 0, allowed are whole numbers >= 1"):
        create_method("mmr", together=0)
