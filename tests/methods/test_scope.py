"""SCOPE: saliency times gain in cover, pick by pick."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.methods.images import image
from tests.methods.one_by_one import cosines, greedy, groups, kept
from vtc import VisualTokens, VTCError, create_method

IMAGES = [image(), image(crops=(2, 2), size=(600, 300)), image(crops=(1, 2), has_cls=False, seed=2)]


@pytest.mark.parametrize("scope", ["image", "tile"])
@pytest.mark.parametrize("alpha", [0.5, 1])  # at 0, two patches that cover but each other are equal
@pytest.mark.parametrize("tokens", IMAGES)
def test_picks_are_those_of_a_loop(tokens, alpha, scope):
    method = create_method("scope", tokens=24, alpha=alpha, scope=scope)
    like = cosines(tokens.features)
    weight = tokens.signals["saliency"].double().flatten() ** alpha
    want = []
    for each, count in groups(tokens, scope, 24):

        def gain(picks, i, each=each):
            best = like[each][:, picks].amax(1) if picks else torch.zeros(len(each)).double()
            return float(weight[i] * (like[each, i] - best.clamp(min=0)).clamp(min=0).sum())

        want += greedy(each, count, gain)
    assert kept(method.compress(tokens)) == sorted(want)


def test_the_attention_is_that_of_the_layer_that_is_read():
    assert create_method("scope").requests()["saliency"].layer == "read"
    assert create_method("scope").requests()["saliency"].kind == "cls_attention"
    assert create_method("scope").requests(has_cls=False)["saliency"].kind == "attention_received"
    assert create_method("scope", layer=-1).requests()["saliency"].layer == -1


@pytest.mark.parametrize("scope", ["image", "tile"])
def test_large_images_are_covered_part_by_part(scope):
    """No number for every two of more than 4,096 patches: tiles by themselves, large ones in parts."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 5000, 16, generator=generator)
    saliency = torch.rand(1, 5000, generator=generator)
    tokens = VisualTokens(features, (50, 100), signals={"saliency": saliency})
    method = create_method("scope", tokens=20, scope=scope)
    out = method.compress(tokens)
    halves = [
        VisualTokens(f[None], (25, 100), signals={"saliency": s[None]})
        for f, s in zip(features[0].split(2500), saliency[0].split(2500), strict=True)
    ]
    want = [create_method("scope", tokens=10).compress(half).patch for half in halves]
    assert out.patch.tolist() == [*want[0].tolist(), *(want[1] + 2500).tolist()]
    small = replace(image(), signals={"saliency": torch.ones(1, 64)})
    for got, one in zip(method.compress_all([tokens, small]), [tokens, small], strict=True):
        assert torch.equal(got.patch, method.compress(one).patch)


def test_wrong_options():
    with pytest.raises(VTCError, match="alpha: got -1, allowed are numbers >= 0"):
        create_method("scope", alpha=-1)
    with pytest.raises(VTCError, match="layer: got 'last'"):
        create_method("scope", layer="last")
