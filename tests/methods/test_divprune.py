"""DivPrune: max-min distance, pick by pick."""

from __future__ import annotations

import pytest
import torch

from tests.methods.images import image
from tests.methods.one_by_one import cosines, greedy, groups, kept
from vtc import VisualTokens, VTCError, create_method
from vtc.batch import ImageBatch
from vtc.kernels import greedy_pick

IMAGES = [image(), image(crops=(2, 2), size=(600, 300)), image(crops=(1, 2), has_cls=False, seed=2)]


@pytest.mark.parametrize("scope", ["image", "tile"])
@pytest.mark.parametrize("tokens", IMAGES)
def test_picks_are_those_of_a_loop(tokens, scope):
    method = create_method("divprune", tokens=24, scope=scope)
    like = cosines(tokens.features)
    want = []
    for each, count in groups(tokens, scope, 24):

        def distance(picks, i, each=each):
            others = picks or [j for j in each if j != i]
            return min((1 - float(like[i, j]) for j in others), default=0)

        want += greedy(each, count, distance)
    assert kept(method.compress(tokens)) == sorted(want)


def test_nobody_is_picked_twice_and_the_first_of_equals_stays():
    """The official code picks a duplicate twice."""
    features = torch.eye(16)[torch.arange(64) % 3][None]
    tokens = VisualTokens(features, (8, 8))
    method = create_method("divprune", tokens=8)
    order = method.pick(ImageBatch([tokens], [method])).order
    assert order.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_newlines_stay_and_do_not_compete():
    tokens = image(crops=(2, 2))
    out = create_method("divprune", tokens=10).compress(tokens)
    assert int((~out.is_patch).sum()) == int((~tokens.layout.is_patch).sum())
    assert int(out.is_patch.sum()) == 10


def test_more_patches_than_one_product_holds():
    """Above 4,096 candidates cosines are made row by row; the picks are the same."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 4200, 24, generator=generator)
    method = create_method("divprune", tokens=12)
    out = method.compress(VisualTokens(features, (60, 70)))
    like = cosines(features)
    first = int(like.clone().fill_diagonal_(-9).amax(1).argmin())
    near, want = like[first].clone(), [first]
    for _ in range(11):
        near[want] = 9
        want.append(int(near.argmin()))
        near = torch.maximum(near, like[want[-1]])
    assert out.patch.tolist() == sorted(want)


def test_picks_of_many_patches_are_those_of_few(monkeypatch):
    """The first is looked for block by block; all patches are compared with 16 picks at once."""
    batch = [image(crops=(2, 2), seed=i) for i in range(2)] + [image(crops=(1, 3), seed=2)]
    method = create_method("divprune", retention=0.6)
    want = method.compress_all(batch)
    monkeypatch.setattr(greedy_pick, "LONGEST", 20)
    monkeypatch.setattr(greedy_pick, "BLOCK", 50)
    monkeypatch.setattr(greedy_pick, "SETTLED", 16)
    for out, same in zip(method.compress_all(batch), want, strict=True):
        assert out.is_patch.sum() > 3 * 16
        assert torch.equal(out.anchor, same.anchor)


def test_many_patches_of_which_none_counts(monkeypatch):
    """No valid one in the second image, or no finite one: the first is as if alone."""
    rows = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 50, dtype=torch.bool)
    count = torch.tensor([3, 3])
    alone = greedy_pick.greedy_pick("distance", rows[:1], count[:1], 3)
    monkeypatch.setattr(greedy_pick, "LONGEST", 20)
    monkeypatch.setattr(greedy_pick, "BLOCK", 16)
    for broken in (valid.clone(), valid):
        if broken is valid:
            rows[1] = torch.nan
        else:
            broken[1] = False
        got = greedy_pick.greedy_pick("distance", rows, count, 3, None, broken)
        assert got[0].tolist() == alone[0].tolist()
        assert broken[1].any() or got[1].tolist() == [-1, -1, -1]


def test_wrong_scope():
    with pytest.raises(VTCError, match="scope: got 'clip', allowed are image, tile"):
        create_method("divprune", scope="clip")
