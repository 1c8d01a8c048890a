"""MMTok: cover of the question and of the picture, pick by pick."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from tests.methods.images import image
from tests.methods.one_by_one import greedy, groups, kept
from vtc import VTCError, create_method
from vtc.functional.grids import squared_padding

IMAGES = [image(), image(crops=(2, 2), size=(600, 300)), image(crops=(1, 2), has_cls=False, seed=2)]


def close(a, b):
    return normalize(a.double(), dim=-1) @ normalize(b.double(), dim=-1).T


@pytest.mark.parametrize("scope", ["image", "tile"])
@pytest.mark.parametrize("alpha", [0.5, 2])
@pytest.mark.parametrize("tokens", IMAGES)
def test_picks_are_those_of_a_loop(tokens, alpha, scope):
    method = create_method("mmtok", tokens=16, alpha=alpha, scope=scope)
    features, seen = tokens.features.flatten(0, 1), tokens.signals["projector_input"].flatten(0, 1)
    words = tokens.signals["question_tokens"]
    want = []
    for each, count in groups(tokens, scope, 16):
        if not each:
            continue
        question = (close(words, features[each]) / 0.02).softmax(1)
        picture = (close(seen[each], seen[each]) / 0.2).softmax(1)

        def cover(picks, i, each=each, question=question, picture=picture):
            chosen = [each.index(j) for j in [*picks, i]]
            best = question[:, chosen].amax(1).mean(), picture[:, chosen].amax(1).mean()
            return float(best[0] + alpha * best[1])

        want += greedy(each, count, cover)
    assert kept(method.compress(tokens)) == sorted(want)


@pytest.mark.parametrize(
    "text,words,want",
    [
        ("What is the color of the two cars?", "content", "color of two cars"),
        (
            "Is it red?\nAnswer the question using a single word or phrase.",
            "content",
            "red",
        ),
        ("Who is it?", "content", "Who is it?"),
        ("What is the color?", "all", "What is the color?"),
    ],
)
def test_the_words_that_say_what_is_looked_for(text, words, want):
    assert create_method("mmtok", words=words).reworded(text) == want


def test_nothing_asked_is_the_picture_alone_and_questions_may_differ():
    batch = [image(seed=i) for i in range(3)]
    for count, tokens in enumerate(batch):
        tokens.signals["question_tokens"] = tokens.signals["question_tokens"][: 3 * count]
    method = create_method("mmtok", tokens=12)
    for tokens, out in zip(batch, method.compress_all(batch), strict=True):
        assert torch.equal(out.anchor, method.compress(tokens).anchor)


def test_patches_in_the_padding_of_a_square_come_last():
    tokens = replace(image(), image_size=(300, 600))
    inside = ~squared_padding((8, 8), (300, 600))
    assert int(inside.sum()) == 32 and bool(inside.view(8, 8)[2:6].all())
    out = create_method("mmtok", tokens=32, squared=True).compress(tokens)
    assert kept(out) == inside.nonzero().squeeze(1).tolist()
    assert not squared_padding((8, 8), None).any() and not squared_padding((8, 8), (9, 9)).any()
    assert torch.equal(
        squared_padding((8, 8), (600, 300)).view(8, 8),
        squared_padding((8, 8), (300, 600)).view(8, 8).T,
    )
    more = create_method("mmtok", tokens=40, squared=True).compress(tokens)
    assert int(more.is_patch.sum()) == 40 and set(kept(out)) < set(kept(more))


def test_wrong_options():
    with pytest.raises(VTCError, match="text_temperature: got 0, allowed are numbers"):
        create_method("mmtok", text_temperature=0)
    with pytest.raises(VTCError, match="squared: got 'yes', allowed are True and False"):
        create_method("mmtok", squared="yes")
    with pytest.raises(VTCError, match="words: got 'some', allowed are content, all"):
        create_method("mmtok", words="some")
