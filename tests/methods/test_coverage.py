"""Coverage: facility location over all tiles, pick by pick, and what the picks are made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.methods.images import clip, image
from tests.methods.one_by_one import cosines, greedy, groups, kept
from vtc import VisualTokens, VTCError, create_method
from vtc.batch import ImageBatch
from vtc.functional.cover import nearest_of, representatives
from vtc.kernels._ordering import LONGEST

IMAGES = [
    image(),
    image(crops=(2, 2), size=(600, 300)),
    image(crops=(1, 3), size=(200, 900), has_cls=False, seed=2),
]


def by_hand(tokens: VisualTokens, budget: int, overview: float = 2.0) -> Tensor:
    """Float64: how much each patch, as `tile * N + patch`, asks to be stood for."""
    demand = tokens.signals["attention"].double().clone()
    if tokens.tile_grid is not None:
        demand[0] *= min(1.0, overview * budget / demand.shape[1])
    return demand.flatten()


@pytest.mark.parametrize("scope", ["image", "tile"])
@pytest.mark.parametrize("budget", [3, 24, 60])
@pytest.mark.parametrize("tokens", IMAGES)
def test_picks_are_those_of_a_loop(tokens, budget, scope):
    method = create_method("coverage", tokens=budget, scope=scope)
    cover = cosines(tokens.features).clamp(min=0) ** 2
    demand, want = by_hand(tokens, budget), []
    for each, count in groups(tokens, scope, budget):

        def gain(picks, i, each=each):
            best = cover[each][:, picks].amax(1) if picks else torch.zeros(len(each)).double()
            return float((demand[each] * (cover[each, i] - best).clamp(min=0)).sum())

        want += greedy(each, count, gain)
    assert kept(method.compress(tokens)) == sorted(want)
    plain = create_method("coverage", tokens=budget, scope=scope, merge=False).compress(tokens)
    assert kept(plain) == sorted(want) and plain.merged is None


@pytest.mark.parametrize("tokens", IMAGES)
def test_a_token_is_the_mean_of_what_it_stands_for(tokens):
    out = create_method("coverage", tokens=12, sharpness=3.0).compress(tokens)
    picks = kept(out)
    like, demand = cosines(tokens.features), by_hand(tokens, 12)
    features = tokens.features.flatten(0, 1).double()
    sums, weight, size = torch.zeros(12, 16).double(), torch.zeros(12).double(), [0] * 12
    for i in tokens.valid.flatten().nonzero().squeeze(1).tolist():
        nth = picks.index(i) if i in picks else int(like[i, picks].argmax())
        share = demand[i] * like[i, picks[nth]].clamp(min=0) ** 3
        sums[nth] += share * features[i]
        weight[nth] += share
        size[nth] += 1
    order = (out.tile * 64 + out.patch)[out.is_patch].tolist()
    want = torch.stack([sums[picks.index(i)] / weight[picks.index(i)] for i in order])
    torch.testing.assert_close(out.features[out.is_patch].double(), want, atol=1e-5, rtol=1e-4)
    assert out.weight[out.is_patch].tolist() == [size[picks.index(i)] for i in order]
    assert int(out.weight[out.is_patch].sum()) == tokens.num_patches
    separators = ~out.is_patch
    assert int(separators.sum()) == int((~tokens.layout.is_patch).sum())
    assert torch.equal(out.features[separators], tokens.newline.expand(int(separators.sum()), -1))


def test_tiles_have_no_budgets():
    """One crop shows eight things, the others one: all eight are kept, and the thumbnail gets none."""
    tokens = image(crops=(2, 2), size=(600, 600))
    features = torch.zeros(5, 64, 16)
    features[:, :, 0] = 1.0
    features[3] = torch.eye(16)[torch.arange(64) % 8 + 1]
    tokens = replace(tokens, features=features, signals={"attention": torch.full((5, 64), 1 / 64)})
    out = create_method("coverage", tokens=9).compress(tokens)
    tiles = out.tile[out.is_patch].tolist()
    assert tiles.count(3) == 8 and len(tiles) == 9


def test_the_thumbnail_is_worth_what_the_budget_could_keep_of_it():
    tokens = IMAGES[1]
    for budget, worth in ((8, 0.25), (16, 0.5), (32, 1.0), (100, 1.0)):
        method = create_method("coverage", tokens=budget)
        demand = method.demand(ImageBatch([tokens], [method]))
        torch.testing.assert_close(demand[0], tokens.signals["attention"][0] * worth)
        assert torch.equal(demand[1:], (tokens.signals["attention"] * tokens.valid)[1:])
    none = create_method("coverage", tokens=8, overview=0, merge=False).compress(tokens)
    assert 0 not in none.tile[none.is_patch]  # nobody asks for it, and it covers nothing better
    frames = clip(4)
    method = create_method("coverage", tokens=2)
    demand = method.demand(ImageBatch([frames], [method]))
    assert torch.equal(demand, frames.signals["attention"])  # a clip has no thumbnail


@pytest.mark.parametrize("budget", [1, 7, 30])
def test_a_batch_is_its_rows(budget):
    images = [image(crops=c, size=s, seed=n) for n, (c, s) in enumerate(
        [((2, 2), (600, 300)), ((1, 2), (300, 900)), ((3, 1), (800, 200))]
    )]  # fmt: skip
    images = [replace(each, newline=images[0].newline) for each in images]
    method = create_method("coverage", tokens=budget)
    for got, one in zip(method.compress_all(images), images, strict=True):
        want = method.compress(one)
        assert torch.equal(got.anchor, want.anchor)
        assert torch.equal(got.weight, want.weight)
        torch.testing.assert_close(got.features, want.features)


def test_nothing_is_looked_at():
    """Where attention is 0 everywhere, tokens are patches as they are, and numbers."""
    tokens = replace(image(), signals={"attention": torch.zeros(1, 64)})
    out = create_method("coverage", tokens=5).compress(tokens)
    patches = out.patch[out.is_patch]
    assert torch.equal(out.features[out.is_patch], tokens.features[0, patches])


def large(count: int, grid: tuple[int, int], seed: int = 0) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, grid[0] * grid[1], 16, generator=generator)
    attention = torch.rand(count, grid[0] * grid[1], generator=generator)
    return VisualTokens(features, grid, (1, count - 1), None, signals={"attention": attention},
                        unpad="none")  # fmt: skip


def test_of_more_patches_those_in_demand_compete():
    """The 4,096 with the most attention, the demand of the others handed to the likest of them."""
    tokens = large(3, (40, 40))  # 4,800 patches
    method = create_method("coverage", tokens=12)
    out = method.compress(tokens)
    demand, like = by_hand(tokens, 12), cosines(tokens.features)
    there = demand.sort(descending=True, stable=True).indices[:LONGEST].sort().values
    needs = demand[there].clone()
    gone = sorted({*range(4800)} - {*there.tolist()})
    needs.index_add_(0, like[gone][:, there].argmax(1), demand[gone])
    cover = like[there][:, there].clamp(min=0) ** 2
    best, picks = torch.zeros(LONGEST).double(), []
    for _ in range(12):
        gain = ((cover - best).clamp(min=0) * needs).sum(1)
        gain[picks] = -1
        picks.append(int(gain.argmax()))
        best = torch.maximum(best, cover[picks[-1]])
    assert sorted((out.tile * 1600 + out.patch).tolist()) == sorted(there[picks].tolist())
    assert int(out.weight.sum()) == 4800  # all are merged, also what did not compete
    small = replace(large(3, (40, 40), 1), tile_grid=(1, 2))
    for got, one in zip(method.compress_all([tokens, small]), [tokens, small], strict=True):
        assert torch.equal(got.anchor, method.compress(one).anchor)


def test_many_tokens_of_many_patches_are_shared_among_tiles():
    tokens = large(3, (40, 40))
    out = create_method("coverage", tokens=2400).compress(tokens)
    assert torch.bincount(out.tile).tolist() == [800, 800, 800]
    assert int(out.weight.sum()) == 4800


def test_a_member_is_its_own_and_padding_is_nobodys():
    rows = torch.tensor([[[1.0, 0], [1.0, 0], [0, 1.0], [1.0, 1.0]]])
    chosen, real = torch.tensor([[2, 1, -1]]), torch.tensor([[True, True, False]])
    owner, close = nearest_of(rows, chosen, real)
    assert owner[0, :3].tolist() == [1, 1, 2]
    assert close[0, :3].tolist() == [1.0, 1.0, 1.0]
    index, needs, there = representatives(
        rows, torch.tensor([[3.0, 1.0, 2.0, 9.0]]), torch.tensor([[True, True, True, False]]), 2
    )
    assert index.tolist() == [[0, 2]] and needs.tolist() == [[4.0, 2.0]] and bool(there.all())


def test_wrong_options():
    with pytest.raises(VTCError, match="sharpness: got 0, allowed are numbers >= 0.1"):
        create_method("coverage", sharpness=0)
    with pytest.raises(VTCError, match="overview: got -1, allowed are numbers >= 0"):
        create_method("coverage", overview=-1)
    with pytest.raises(VTCError, match="merge: got 1, allowed are True and False"):
        create_method("coverage", merge=1)
    with pytest.raises(VTCError, match="scope: got 'clip', allowed are image, tile"):
        create_method("coverage", scope="clip")
