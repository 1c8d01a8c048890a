"""TokenFLEX: projector, sampler, geometry."""

import warnings
from dataclasses import replace

import pytest
import torch

from tests.methods.images import WIDTH, image, make
from vtc import VTCError
from vtc.batch import ImageBatch
from vtc.methods.tokenflex import TokenFlexProjector, sample_token_count, side_of


@pytest.fixture
def projector():
    torch.manual_seed(0)
    return TokenFlexProjector(WIDTH, 24)


def explicit(projector, pooled):
    normed = torch.nn.functional.layer_norm(pooled, pooled.shape[-1:])
    gate = normed @ projector.gate.weight.T
    return (gate * torch.sigmoid(gate) * (normed @ projector.up.weight.T)) @ projector.down.weight.T


@pytest.mark.parametrize("grid,side", [((8, 8), 4), ((27, 27), 12), ((9, 6), 5)])
def test_projector_is_pooling_then_swiglu(projector, grid, side):
    x = torch.randn(3, grid[0] * grid[1], WIDTH)
    picture = x.transpose(1, 2).unflatten(2, grid)
    pooled = torch.nn.functional.adaptive_avg_pool2d(picture, side).flatten(2).transpose(1, 2)
    got = projector(x, grid, side)
    torch.testing.assert_close(got, explicit(projector, pooled), rtol=1e-4, atol=1e-5)
    flipped = projector(x.flip(0), grid, side)
    torch.testing.assert_close(flipped, got.flip(0))


def test_projector_at_full_side_does_not_pool(projector):
    x = torch.randn(2, 64, WIDTH)
    torch.testing.assert_close(projector(x, (8, 8), 8), projector.project(x))


def test_projector_without_norm_and_with_bias():
    projector = TokenFlexProjector(WIDTH, 24, hidden=40, norm=False, bias=True)
    assert projector.gate.weight.shape == (40, WIDTH) and projector.down.bias is not None
    assert projector(torch.randn(1, 36, WIDTH), side=3).shape == (1, 9, 24)


def test_projector_checks_its_input(projector):
    with pytest.raises(VTCError, match="got 60 patches, no square"):
        projector(torch.randn(1, 60, WIDTH), side=2)
    with pytest.raises(VTCError, match="patch_grid"):
        projector(torch.randn(1, 64, WIDTH), (4, 4), 2)
    with pytest.raises(VTCError, match="side: got 0"):
        projector(torch.randn(1, 64, WIDTH), side=0)
    with pytest.warns(UserWarning, match="repeat"):
        assert projector(torch.randn(1, 16, WIDTH), side=6).shape == (1, 36, 24)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_projectors_are_equal(projector, tmp_path, dtype):
    projector.to(dtype).save(tmp_path / "flex")
    loaded = TokenFlexProjector.load(tmp_path / "flex")
    x = torch.randn(1, 64, WIDTH)
    assert torch.equal(loaded(x, side=4), projector(x, side=4))
    assert loaded.gate.weight.dtype == dtype


def test_loading_nonsense_is_a_clear_error(tmp_path, projector):
    with pytest.raises(VTCError, match="need a folder with projector.json"):
        make("tokenflex", projector=str(tmp_path))
    projector.save(tmp_path)
    (tmp_path / "projector.json").write_text('{"vision_width": 3, "text_width": 4}')
    with pytest.raises(VTCError, match="does not load"):
        TokenFlexProjector.load(tmp_path)
    with pytest.raises(VTCError, match="projector: got int"):
        make("tokenflex", projector=3)


def test_sampler_has_the_papers_law():
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([sample_token_count(generator) for _ in range(4000)])
    share = [float((draws == n).float().mean()) for n in (64, 144, 256)]
    torch.testing.assert_close(
        torch.tensor(share), torch.tensor([0.2, 0.3, 0.5]), atol=0.03, rtol=0
    )
    assert abs(float(draws.float().mean()) / 256 - 0.719) < 0.02
    assert sample_token_count(7) == sample_token_count(7)  # the same on every rank


def test_counts_must_be_squares():
    assert side_of(144) == 12
    with pytest.raises(VTCError, match="count: got 90, allowed are squares"):
        sample_token_count(0, counts=(64, 90), probabilities=(1, 1))
    with pytest.raises(VTCError, match="probabilities"):
        sample_token_count(0, counts=(64,), probabilities=(1, 1))


def test_method_with_a_projector_gives_language_width(projector):
    tokens = image()
    method = make("tokenflex", side=4, projector=projector)
    out = method.compress(tokens)
    patch = out.is_patch
    assert out.projected and not method.is_identity(tokens) and int(patch.sum()) == 16
    torch.testing.assert_close(out.features[patch], projector(tokens.features, (8, 8), 4)[0])
    whole = make("tokenflex", retention=1.0, projector=projector)
    assert not whole.is_identity(tokens)
    torch.testing.assert_close(
        whole.compress(tokens).features[:64], projector.project(tokens.features[0])
    )


def test_separators_get_the_newline_when_it_has_the_projected_width(projector):
    tokens = replace(image(crops=(2, 2)), newline=torch.full((24,), 5.0))
    out = make("tokenflex", side=4, projector=projector).compress(tokens)
    assert bool((out.features[~out.is_patch] == 5).all()) and int((~out.is_patch).sum()) == 8


def test_half_precision_projector_and_gradients(projector):
    tokens = image(dtype=torch.bfloat16)
    out = make("tokenflex", side=4, projector=projector).compress(tokens)
    assert out.features.dtype == torch.bfloat16
    out.features.float().sum().backward()
    assert all(p.grad is not None for p in projector.parameters())


def test_crops_form_a_smaller_canvas_with_one_newline_a_row():
    tokens = image(crops=(2, 2), size=(500, 500))
    out = make("tokenflex", side=4).compress(tokens)
    assert int(out.is_patch.sum()) == 5 * 16
    crops = out.tile[16:].view(8, 9)  # 8 rows of 4 + 4 tokens and a newline
    assert crops[0].tolist() == [1] * 4 + [2] * 4 + [-1]
    assert crops[7].tolist() == [3] * 4 + [4] * 4 + [-1]


def test_bins_of_padding_alone_are_dropped_and_mixed_ones_average_the_rest():
    tokens = image(crops=(2, 2), size=(250, 1000))  # canvas 16 x 16, rows 6..10 hold the picture
    out = make("tokenflex", side=4).compress(tokens)
    per_tile = torch.bincount(out.tile[out.is_patch], minlength=5)
    assert per_tile.tolist() == [16, 4, 4, 4, 4]
    assert int((~out.is_patch).sum()) == 2
    assert bool((out.weight[out.is_patch] == 4).all())
    odd = image(crops=(2, 2), size=(300, 1000))
    out = make("tokenflex", side=3).compress(odd)
    sources = out.merged.source
    assert bool(odd.valid.flatten()[sources].all())


def test_side_is_the_largest_that_fits_a_budget():
    tokens = image(crops=(2, 2), size=(500, 500))
    kept = [
        int(make("tokenflex", tokens=n).compress(tokens).is_patch.sum())
        for n in (1, 19, 20, 79, 80, 319)
    ]
    assert kept == [5, 5, 20, 45, 80, 245]


def test_too_large_a_side_is_cut_with_a_warning():
    with pytest.warns(UserWarning, match="side: 10 is more than a tile of 8 x 8 patches has"):
        out = make("tokenflex", side=10).compress(image())
    assert int(out.is_patch.sum()) == 64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make("tokenflex", side=8).compress(image())


def test_without_a_projector_there_is_no_tokenflex():
    """Plain pooling is another method: whatever the budget, alone and in a batch."""
    for options in ({}, {"retention": 0.5}, {"retention": 1.0}, {"tokens": 9}, {"side": 4}):
        method = make("tokenflex", projector=None, **options)
        message = r"projector: got None.*train_tokenflex.*TokenFlexProjector\.save.*'pool' works"
        with pytest.raises(VTCError, match=message):
            method.compress(image())
        with pytest.raises(VTCError, match=message):
            method.compress_all([image(crops=(2, 2)), image()])
        with pytest.raises(VTCError, match=message):
            method.compress_batch(ImageBatch([image()], [method]))


def test_a_projector_for_another_tower_is_refused(projector):
    tokens = image()
    wide = replace(tokens, features=tokens.features.repeat(1, 1, 2))
    with pytest.raises(VTCError, match="projector: got one for vision features of width 16, .* 32"):
        make("tokenflex", side=4, projector=projector).compress(wide)


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: x[None], lambda x: x.repeat(2, 1)])
def test_a_projector_that_changes_the_number_of_tokens_is_refused(change):
    class Odd(torch.nn.Module):
        config = object()  # not one of ours

        def project(self, pooled):
            return change(pooled)

    with pytest.raises(VTCError, match=r"projector: Odd.project made \(.* of \(16, 16\)"):
        make("tokenflex", side=4, projector=Odd()).compress(image())


def test_what_was_asked_for_is_known_where_a_grid_cannot_meet_it():
    square, oblong = image(), image((4, 16))
    crops = image(crops=(2, 2), size=(500, 500))
    for tokens, budget, asked, left in (
        (square, {"retention": 0.5}, 32, 25),
        (oblong, {"retention": 0.5}, 32, 16),
        (oblong, {"tokens": 999}, 999, 16),
        (crops, {"tokens": 1}, 1, 5),
        (square, {"retention": 1.0}, 64, 64),
        (square, {"side": 3}, None, 9),
    ):
        method = make("tokenflex", **budget)
        assert method.asked(tokens) == asked
        assert int(method.compress(tokens).is_patch.sum()) == left


def test_side_and_a_budget_exclude_each_other():
    with pytest.raises(VTCError, match="side: got 4 beside retention"):
        make("tokenflex", side=4, retention=0.5)
    with pytest.raises(VTCError, match="side: got 4 beside tokens"):
        make("tokenflex", side=4, tokens=9)
