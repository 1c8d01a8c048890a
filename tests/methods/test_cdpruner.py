"""CDPruner: volume scaled by relevance, pick by pick."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.methods.images import image
from tests.methods.one_by_one import cosines, greedy, groups, kept
from vtc import VTCError, create_method

IMAGES = [image(), image(crops=(2, 2), size=(600, 300)), image(crops=(1, 2), has_cls=False, seed=2)]


def relevance(tokens, text_score, sign):
    """Of every patch, from 0 to 1 over the image."""
    aligned = text_score == "aligned"
    rows = tokens.signals["patch_embedding"] if aligned else tokens.features
    texts = tokens.signals["text_segments" if aligned else "question_tokens"]
    close = torch.stack([cosine_similarity(rows.double(), t.double(), dim=-1) for t in texts])
    close = close.mean(0) * (-1 if sign == "negative" else 1)
    low, high = close[tokens.valid].min(), close[tokens.valid].max()
    return ((close - low + 1e-6) / (high - low)).flatten()


@pytest.mark.parametrize("scope", ["image", "tile"])
@pytest.mark.parametrize(
    "text_score,option,sign",
    [
        ("aligned", "auto", "negative"),
        ("aligned", "positive", "positive"),
        ("similarity", "auto", "positive"),
        ("similarity", "negative", "negative"),
    ],
)
@pytest.mark.parametrize("tokens", IMAGES)
def test_picks_are_those_of_a_loop(tokens, text_score, option, sign, scope):
    method = create_method("cdpruner", tokens=12, text_score=text_score, sign=option, scope=scope)
    fit = relevance(tokens, text_score, sign)
    kernel = fit[:, None] * cosines(tokens.features) * fit
    want = []
    for each, count in groups(tokens, scope, 12):

        def volume(picks, i):
            chosen = [*picks, i]
            return float(torch.linalg.slogdet(kernel[chosen][:, chosen]).logabsdet)

        want += greedy(each, count, volume)
    assert kept(method.compress(tokens)) == sorted(want)


def test_beyond_the_rank_relevance_decides():
    """Sixteen channels hold sixteen picks; the official code gives NaN."""
    tokens = image()
    fit = relevance(tokens, "aligned", "negative")
    method = create_method("cdpruner", tokens=40)
    order = method.pick(batch_of(method, tokens)).order[0]
    assert len(set(order.tolist())) == 40
    assert bool((fit[order[16:]].diff() <= 0).all())


def test_all_equally_relevant_is_volume_alone():
    tokens = image()
    same = replace(tokens, signals={**tokens.signals, "patch_embedding": torch.ones(1, 64, 12)})
    out = create_method("cdpruner", tokens=10).compress(same)
    like = cosines(tokens.features)

    def volume(picks, i):
        chosen = [*picks, i]
        return round(float(torch.linalg.slogdet(like[chosen][:, chosen]).logabsdet), 9)

    assert kept(out) == sorted(greedy(list(range(64)), 10, volume))


def test_an_image_does_not_hang_on_its_neighbours_and_questions_may_differ():
    batch = [image(seed=i) for i in range(3)]
    for count, tokens in enumerate(batch, start=1):
        tokens.signals["text_segments"] = torch.randn(
            count, 12, generator=torch.Generator().manual_seed(count)
        )
        tokens.signals["question_tokens"] = tokens.signals["question_tokens"][: 3 * (count - 1)]
    for text_score in ("aligned", "similarity"):
        method = create_method("cdpruner", tokens=12, text_score=text_score)
        for tokens, out in zip(batch, method.compress_all(batch), strict=True):
            assert torch.equal(out.anchor, method.compress(tokens).anchor)


def batch_of(method, *images):
    from vtc.batch import ImageBatch

    return ImageBatch(images, [method] * len(images))


def test_wrong_options():
    with pytest.raises(VTCError, match="sign: got 'minus', allowed are auto, negative, positive"):
        create_method("cdpruner", sign="minus")
    with pytest.raises(VTCError, match="text_score: got 'both'"):
        create_method("cdpruner", text_score="both")
