"""random, uniform, pool."""

from dataclasses import replace

import torch

from tests.methods.images import image, make


def test_random_follows_the_image_and_the_seed():
    tokens = image(crops=(2, 2), seed=3)
    kept = make("random", retention=0.25).compress(tokens).anchor
    again = replace(tokens, features=tokens.features * 2)  # same pixels, another place in a batch
    assert torch.equal(make("random", retention=0.25).compress(again).anchor, kept)
    other = replace(tokens, content_seed=4)
    assert not torch.equal(make("random", retention=0.25).compress(other).anchor, kept)
    seeded = make("random", retention=0.25, seed=1).compress(tokens).anchor
    assert not torch.equal(seeded, kept)


def test_random_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    make("random", retention=0.5).compress(image())
    assert torch.equal(torch.rand(1), want)


def test_random_covers_every_patch_evenly():
    counts = torch.zeros(64)
    for seed in range(400):
        out = make("random", tokens=16, seed=seed).compress(image(newline=False))
        counts[out.patch] += 1
    assert float(counts.min()) > 60 and float(counts.max()) < 145  # mean 100, deviation 8.7


def test_uniform_is_a_regular_grid():
    out = make("uniform", retention=0.25).compress(image(newline=False))
    assert sorted((out.patch // 8).unique().tolist()) == [0, 2, 4, 6]
    assert sorted((out.patch % 8).unique().tolist()) == [0, 2, 4, 6]


def test_uniform_and_pool_share_by_what_is_not_padding():
    tokens = image(crops=(2, 2), size=(300, 1000))
    for name in ("uniform", "pool"):
        out = make(name, retention=0.25).compress(tokens)
        kept = torch.bincount(out.tile[out.is_patch], minlength=5)
        torch.testing.assert_close(
            kept / tokens.valid.sum(1), torch.full((5,), 0.25), atol=0.05, rtol=0
        )


def test_pool_averages_disjoint_bins_that_cover_all_patches():
    tokens = image(crops=(2, 2), size=(300, 1000))
    out = make("pool", tokens=23).compress(tokens)
    sources = torch.bincount(out.merged.source, minlength=5 * 64)
    assert torch.equal(sources, tokens.valid.flatten().long())
    patch = out.is_patch
    assert int(out.weight[patch].sum()) == tokens.num_patches
    mean = (out.features[patch] * out.weight[patch, None]).sum(0) / tokens.num_patches
    torch.testing.assert_close(mean, tokens.features[tokens.valid].mean(0), rtol=1e-4, atol=1e-5)


def test_pool_by_four_is_plain_average_pooling():
    tokens = image(newline=False)
    out = make("pool", retention=0.25).compress(tokens)
    picture = tokens.features[0].T.view(1, -1, 8, 8)
    want = torch.nn.functional.avg_pool2d(picture, 2)[0].flatten(1).T
    torch.testing.assert_close(out.features, want)


def test_spreading_pooled_values_fills_their_bins():
    out = make("pool", retention=0.25).compress(image(newline=False))
    spread = out.merged.spread(torch.arange(16.0)).view(8, 8)
    assert torch.equal(spread[::2, ::2], torch.arange(16.0).view(4, 4))
    assert torch.equal(spread[::2], spread[1::2]) and torch.equal(spread[:, ::2], spread[:, 1::2])
