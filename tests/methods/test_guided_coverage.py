"""`coverage` with `guidance`: the question's share of the demand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests import asking
from tests.methods.images import WIDTH, image
from tests.methods.one_by_one import cosines, kept
from vtc import VisualTokens, VTCError, create_method
from vtc.batch import ImageBatch
from vtc.tokens import OF_THE_QUESTION

IMAGES = [
    image(),
    image(crops=(2, 2), size=(600, 300)),
    image(crops=(1, 3), size=(200, 900), has_cls=False, seed=2),
]
ASKED = {"aligned": "text_segments", "similarity": "question_tokens"}


def by_hand(tokens: VisualTokens, budget: int, guidance: float, score: str, sign: int) -> Tensor:
    """Float64: how much each patch, as `tile * N + patch`, asks to be stood for."""
    seen = tokens.signals["attention"].double().clone()
    if tokens.tile_grid is not None:
        seen[0] *= min(1.0, 2.0 * budget / seen.shape[1])
    valid = tokens.valid.flatten()
    seen = seen.flatten() * valid
    rows = tokens.signals["patch_embedding"] if score == "aligned" else tokens.features
    rows = normalize(rows.double().flatten(0, 1), dim=-1)[valid]
    words = normalize(tokens.signals[ASKED[score]].double(), dim=-1)
    close = sign * (rows @ words.T).mean(1)
    close = (close - close.mean()) / close.std(correction=0)
    asked = torch.zeros(len(valid)).double()
    asked[valid] = (2 * close).softmax(0)
    return (1 - guidance) * seen / seen.sum() + guidance * asked


@pytest.mark.parametrize("guidance", [0.3, 1])
@pytest.mark.parametrize(
    "score,sign,factor",
    [("aligned", "auto", -1), ("aligned", "positive", 1), ("similarity", "auto", 1)],
)
@pytest.mark.parametrize("tokens", IMAGES)
def test_picks_are_those_of_a_loop(tokens, score, sign, factor, guidance):
    method = create_method(
        "coverage", tokens=14, guidance=guidance, text_score=score, sign=sign, merge=False
    )
    want = by_hand(tokens, 14, guidance, score, factor)
    got = method.demand(ImageBatch([tokens], [method])).double().flatten()
    torch.testing.assert_close(got, want, atol=1e-7, rtol=1e-4)
    cover = cosines(tokens.features).clamp(min=0) ** 2
    best, picks = torch.zeros(len(want)).double(), []
    for _ in range(14):
        gain = (want[:, None] * (cover - best[:, None]).clamp(min=0)).sum(0)
        gain[picks], gain[~tokens.valid.flatten()] = -1, -1
        picks.append(int(gain.argmax()))
        best = torch.maximum(best, cover[:, picks[-1]])
    assert kept(method.compress(tokens)) == sorted(picks)


@pytest.mark.parametrize("name", ["coverage", "learned"])
def test_without_guidance_nothing_is_asked(name):
    scorer = {"scorer": asking.Scorer()} if name == "learned" else {}
    plain = create_method(name, tokens=9, **scorer)
    none = create_method(name, tokens=9, guidance=0, question="what", **scorer)
    for method in (plain, none):
        assert not {r.kind for r in method.requests().values()} & OF_THE_QUESTION
    for tokens in IMAGES:
        got, want = none.compress(tokens), plain.compress(tokens)
        assert torch.equal(got.anchor, want.anchor) and torch.equal(got.features, want.features)
        # and the question does count where it is given a share, also beside a scorer
        guided = create_method(name, tokens=9, guidance=0.5, **scorer).compress(tokens)
        assert not torch.equal(guided.features, want.features)


@pytest.mark.parametrize("score", list(ASKED))
def test_a_batch_is_its_rows_and_questions_differ(score):
    """Six times one picture under two questions of unlike length, and two pictures of other shapes."""
    one = image(crops=(2, 2), size=(600, 300))
    other = torch.randn(1, one.signals[ASKED[score]].shape[1]).add(3)
    asked = replace(one, signals={**one.signals, ASKED[score]: other})
    more = [image(crops=c, size=(300, 900), seed=n) for n, c in enumerate([(1, 2), (3, 1)], 5)]
    images = [one, asked, *(replace(each, newline=one.newline) for each in more), asked, one]
    method = create_method("coverage", tokens=11, guidance=0.5, text_score=score)
    outs = method.compress_all(images)
    for got, alone in zip(outs, images, strict=True):
        want = method.compress(alone)
        assert torch.equal(got.anchor, want.anchor)
        torch.testing.assert_close(got.features, want.features)
    assert torch.equal(outs[0].anchor, outs[5].anchor)
    assert not torch.equal(outs[0].anchor, outs[1].anchor)


def test_where_nothing_is_asked_all_patches_are_asked_for_alike():
    tokens = image(crops=(2, 2), size=(600, 300))
    tokens.signals["question_tokens"] = torch.zeros(0, WIDTH)
    method = create_method("coverage", tokens=11, guidance=1, text_score="similarity")
    demand = method.demand(ImageBatch([tokens], [method]))[tokens.valid]
    torch.testing.assert_close(demand, torch.full_like(demand, 1 / len(demand)))


def test_wrong_options():
    with pytest.raises(VTCError, match="guidance: got 1.5, allowed are numbers from 0 to 1"):
        create_method("coverage", guidance=1.5)
    with pytest.raises(VTCError, match="text_score: got 'words', allowed are aligned, similarity"):
        create_method("coverage", text_score="words")
    with pytest.raises(VTCError, match="sign: got -1, allowed are auto, negative, positive"):
        create_method("coverage", sign=-1)
