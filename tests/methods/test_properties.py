"""What holds for every method and every image."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.methods.images import METHODS, image, images, make
from vtc import CompressedTokens, VisualTokens, VTCError
from vtc.registry import method_class
from vtc.tokens import keep_patches, packed_index

EXACT = [name for name in METHODS if not method_class(name).projects]


def check(tokens: VisualTokens, out: CompressedTokens) -> None:
    """Provenance, positions and separators of any method's result."""
    patch = out.is_patch
    assert int(patch.sum()) >= 1
    anchor = packed_index(tokens)[out.tile[patch], out.patch[patch]]
    assert torch.equal(out.anchor[patch], anchor)
    assert bool((anchor >= 0).all()) and len(anchor.unique()) == len(anchor)
    assert bool((out.tile[~patch] == -1).all())
    assert bool((tokens.layout.patch[out.anchor[~patch]] == -1).all())
    if tokens.newline is not None:
        assert bool((out.features[~patch] == tokens.newline).all())
    if out.merged is None:
        source = tokens.features[out.tile[patch], out.patch[patch]]
        assert torch.equal(out.features[patch], source)
        assert bool((out.weight == 1).all())
    else:
        assert out.merged.num_outputs == len(out)
        values = out.merged.merge(tokens.features.flatten(0, 1))
        torch.testing.assert_close(out.features[patch], values[patch])
        sources = torch.bincount(out.merged.output, minlength=len(out))
        assert torch.equal(out.weight[patch], sources[patch].float())


@pytest.mark.parametrize("name", EXACT)
@given(data=st.data(), tokens=images())
def test_an_absolute_budget_is_met_exactly(name, data, tokens):
    wanted = data.draw(st.integers(1, tokens.num_patches))
    out = make(name, tokens=wanted).compress(tokens)
    assert int(out.is_patch.sum()) == wanted
    check(tokens, out)


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data(), tokens=images())
def test_the_length_is_known_before_anything_is_encoded(name, data, tokens):
    """Of an absolute budget, from the packing alone; what servers reserve places by."""
    method = make(name, tokens=data.draw(st.integers(1, tokens.num_patches + 3)))
    assert method.length(tokens.packing) == len(method.compress(tokens))


@pytest.mark.parametrize("name", METHODS)
@given(tokens=images(), retention=st.floats(0.001, 1))
def test_a_retention_keeps_that_share(name, tokens, retention):
    out = make(name, retention=retention).compress(tokens)
    check(tokens, out)
    kept, patches = int(out.is_patch.sum()), tokens.num_patches
    budget = max(1, math.floor(retention * patches + 1e-9))
    if name == "tokenflex":  # the nearest square grid below
        assert kept <= budget or kept <= len(tokens.features)
    elif name == "globalcom2" and tokens.tile_grid is not None:  # official roundings and weights
        assert kept <= patches
    else:
        assert kept == budget


@pytest.mark.parametrize("name", [n for n in METHODS if n != "globalcom2"])
@given(tokens=images())
def test_tokens_stand_in_the_packed_order(name, tokens):
    out = make(name, retention=0.4).compress(tokens)
    if name == "recoverable" and tokens.tile_grid is None:  # official order: kept, centres, extra
        return
    assert bool((out.anchor.diff() > 0).all())


@pytest.mark.parametrize("name", [n for n in METHODS if make(n, retention=0.2).exact])
@given(tokens=images())
def test_separators_all_stay(name, tokens):
    out = make(name, retention=0.2).compress(tokens)
    assert int((~out.is_patch).sum()) == int((~tokens.layout.is_patch).sum())


@pytest.mark.parametrize("name", EXACT)  # `tokenflex` puts its projector in the place of another
@pytest.mark.parametrize("crops", [None, (2, 2)])
def test_retention_one_is_the_identity(name, crops):
    tokens = image(crops=crops)
    for budget in ({"retention": 1.0}, {"tokens": tokens.num_patches}, {"tokens": 10**6}):
        method = make(name, **budget)
        assert method.is_identity(tokens)
        out, whole = method.compress(tokens), keep_patches(tokens, tokens.valid)
        assert torch.equal(out.features, whole.features)
        assert torch.equal(out.anchor, torch.arange(len(tokens.layout)))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_and_selects_the_same(name, dtype):
    half = image(crops=(2, 2), dtype=dtype)
    assert half.newline is not None
    full = replace(half, features=half.features.float(), newline=half.newline.float())
    out, want = make(name, retention=0.3).compress(half), make(name, retention=0.3).compress(full)
    assert out.features.dtype == dtype
    assert torch.equal(out.anchor, want.anchor)
    torch.testing.assert_close(out.features.float(), want.features, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("has_cls", [True, False])
def test_requests_name_what_compress_reads(name, has_cls):
    tokens = image(crops=(2, 2), has_cls=has_cls)
    method = make(name, retention=0.3)
    asked = {request: tokens.signals[request] for request in method.requests(has_cls)}
    only = VisualTokens(
        tokens.features, tokens.patch_grid, tokens.tile_grid, tokens.image_size, None, asked
    )
    assert len(method.compress(only)) > 0
    bare = VisualTokens(tokens.features, tokens.patch_grid, tokens.tile_grid, tokens.image_size)
    if asked:
        with pytest.raises(VTCError, match="signals: .* is needed by this method"):
            method.compress(bare)


@pytest.mark.parametrize("name", METHODS)
def test_results_repeat_and_ties_go_to_the_lower_patch(name):
    tokens = image(crops=(2, 2))
    flat = {key: torch.ones_like(value) for key, value in tokens.signals.items()}
    flat["attention_received"] = torch.full((5, 64), 1 / 64)
    tied = VisualTokens(
        tokens.features, tokens.patch_grid, tokens.tile_grid, tokens.image_size, None, flat
    )
    for each in (tokens, tied):
        a, b = (make(name, tokens=40).compress(each) for _ in range(2))
        assert torch.equal(a.features, b.features) and torch.equal(a.anchor, b.anchor)
    if name in ("globalcom2", "token_correlation"):
        out = make(name, tokens=40).compress(tied)
        valid = tied.valid
        for tile in range(5):
            kept = out.patch[out.tile == tile]
            first = valid[tile].nonzero().squeeze(1)[: len(kept)]
            assert sorted(kept.tolist()) == first.tolist() or name == "globalcom2"


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_the_kept_features(name):
    tokens = image(crops=(2, 2))
    features = tokens.features.clone().requires_grad_()
    live = VisualTokens(
        features,
        tokens.patch_grid,
        tokens.tile_grid,
        tokens.image_size,
        tokens.newline,
        tokens.signals,
    )
    out = make(name, retention=0.3).compress(live)
    out.features[out.is_patch].sum().backward()
    touched = features.grad.abs().sum(-1) > 0
    assert bool(touched[out.tile[out.is_patch], out.patch[out.is_patch]].all())
    assert not bool(touched[~live.valid].any())


@pytest.mark.parametrize("name", METHODS)
def test_budgets_of_one_call_can_differ_by_image(name):
    method = make(name, retention=[0.2, 0.6])
    tokens = image()
    kept = [int(method.for_image(i, 2).compress(tokens).is_patch.sum()) for i in (0, 1)]
    assert kept[0] < kept[1]


@pytest.mark.parametrize("name", METHODS)
@given(tokens=images(), more=st.sampled_from([1, 7, 10**9]))
def test_more_tokens_than_patches_are_all_of_them(name, tokens, more):
    out = make(name, tokens=tokens.num_patches + more).compress(tokens)
    check(tokens, out)
    square = tokens.patch_grid[0] == tokens.patch_grid[1]
    if name != "tokenflex" or (square and tokens.tile_grid is None):
        assert int(out.is_patch.sum()) == tokens.num_patches


@pytest.mark.parametrize("name", METHODS)
def test_more_tokens_than_patches_are_an_error_where_that_is_asked_for(name):
    with pytest.raises(VTCError, match="tokens: got 65, but the image has 64 patch tokens"):
        make(name, tokens=65, strict=True).compress(image())
    assert int(make(name, tokens=64, strict=True).compress(image()).is_patch.sum()) == 64


@pytest.mark.parametrize("name", METHODS)
def test_images_with_fewer_patches_than_tokens_stand_beside_others(name):
    """Three sizes in one call: the small ones keep all, the large one its budget, as alone."""
    batch = [image((4, 4)), image((8, 8)), image((12, 12)), image((4, 4), seed=1)]
    kept = [int(o.is_patch.sum()) for o in make(name, tokens=64).compress_all(batch)]
    assert kept == [16, 64, 64, 16]
