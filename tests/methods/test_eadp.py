"""EADP: importance from the question, then cover, pick by pick."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from tests.methods.images import image
from tests.methods.one_by_one import cosines, greedy, groups, kept
from vtc import VTCError, create_method
from vtc.batch import ImageBatch
from vtc.functional.budget import apportion

IMAGES = [image(), image(crops=(2, 2), size=(600, 300)), image(crops=(1, 2), has_cls=False, seed=2)]


def importance(tokens, text_score, beta):
    """`[T][N]`, patch by patch."""
    signals = {name: normalize(value.double(), dim=-1) for name, value in tokens.signals.items()}
    if text_score == "aligned":
        rows, whole = signals["patch_embedding"], signals["text_embedding"]
        words = signals["text_sequence"]
    else:
        rows, words = normalize(tokens.features.double(), dim=-1), signals["question_tokens"]
        whole = normalize(tokens.signals["question_tokens"].double().mean(0), dim=0)
    fit = torch.zeros(tokens.valid.shape).double()
    for tile, valid in enumerate(tokens.valid):
        if not valid.any():
            continue
        away = -(rows[tile, valid] @ words.T)
        share = (100 * away).softmax(0)
        entropy = -(share * (share + 1e-12).log()).sum(0)
        best = entropy.argsort()[: max(1, int(0.2 * len(words)))]
        local = away[:, best] @ (-entropy[best] / (0.01 + 1e-6)).softmax(0)
        fit[tile, valid] = 0.5 * -(rows[tile, valid] @ whole) + 0.5 * local
    low, high = fit[tokens.valid].min(), fit[tokens.valid].max()
    fit = (fit - low + 1e-6) / (high - low + 1e-6)
    out = torch.zeros_like(fit)
    side = tokens.patch_grid[0]

    def mirrored(k):
        return -k if k < 0 else 2 * side - 2 - k if k >= side else k

    for tile, patch in tokens.valid.nonzero().tolist():
        total = weights = 0.0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                y, x = mirrored(patch // side + dy), mirrored(patch % side + dx)
                if bool(tokens.valid[tile, y * side + x]):
                    weight = math.exp(-(dy * dy + dx * dx) / 2)
                    total += weight * float(fit[tile, y * side + x])
                    weights += weight
        out[tile, patch] = (total / weights) ** beta
    return out


@pytest.mark.parametrize("text_score", ["aligned", "similarity"])
@pytest.mark.parametrize("beta", [1, 2])
@pytest.mark.parametrize("tokens", IMAGES)
def test_importance_is_that_of_a_loop(tokens, text_score, beta):
    method = create_method("eadp", tokens=16, text_score=text_score, beta=beta)
    got = method.importance(ImageBatch([tokens], [method]))
    want = importance(tokens, text_score, beta).float()
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scope", ["image", "tile"])
@pytest.mark.parametrize("text_score", ["aligned", "similarity"])
@pytest.mark.parametrize("tokens", IMAGES)
def test_picks_are_those_of_a_loop(tokens, text_score, scope):
    method = create_method("eadp", tokens=16, text_score=text_score, scope=scope)
    weight = importance(tokens, text_score, 1)
    like = (1 + cosines(tokens.features)) / 2
    shares = apportion(weight.sum(1), tokens.valid.sum(1), 16).tolist()
    want = []
    for tile, (each, count) in enumerate(groups(tokens, scope, 16)):
        need = weight.flatten()[each]

        def cover(picks, i, each=each, need=need):
            return float(need @ like[each][:, [*picks, i]].amax(1))

        want += greedy(each, count if scope == "image" else shares[tile], cover)
    assert kept(method.compress(tokens)) == sorted(want)


def test_official_rounding_loses_tokens_and_gives_every_tile_one():
    tokens = image(crops=(2, 2))
    method = create_method("eadp", tokens=22, rounding="official")
    assert not method.exact and create_method("eadp").exact
    batch = ImageBatch([tokens], [method])
    sums = method.importance(batch).sum(1).double()
    want = [max(1, math.floor(22 * float(s / sums.sum()))) for s in sums]
    out = method.compress(tokens)
    assert torch.bincount(out.tile[out.is_patch]).tolist() == want and sum(want) < 22
    few = create_method("eadp", tokens=2, rounding="official").compress(tokens)
    assert torch.bincount(few.tile[few.is_patch]).tolist() == [1] * 5


def test_questions_of_any_length_stand_beside_each_other():
    batch = [image(seed=i) for i in range(3)]
    for count, tokens in enumerate(batch):
        for name in ("question_tokens", "text_sequence"):
            tokens.signals[name] = tokens.signals[name][: 3 * count]
    for text_score in ("aligned", "similarity"):
        method = create_method("eadp", tokens=12, text_score=text_score)
        for tokens, out in zip(batch, method.compress_all(batch), strict=True):
            assert torch.equal(out.anchor, method.compress(tokens).anchor)
            if text_score == "similarity" and len(tokens.signals["question_tokens"]) == 3:
                weight = importance(tokens, text_score, 1).float()
                got = method.importance(ImageBatch(batch, [method] * 3))[1:2]
                torch.testing.assert_close(got, weight, rtol=1e-3, atol=1e-5)


def test_grids_of_one_line_are_smoothed_along_it():
    tokens = image((1, 9))
    out = create_method("eadp", tokens=4).compress(tokens)
    assert int(out.is_patch.sum()) == 4


def test_wrong_options():
    with pytest.raises(VTCError, match="pointed: got 2, allowed are numbers from 0 to 1"):
        create_method("eadp", pointed=2)
    with pytest.raises(VTCError, match="rounding: got 'down', allowed are exact, official"):
        create_method("eadp", rounding="down")
