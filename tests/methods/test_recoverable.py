"""Recoverable compression beyond its golden vectors."""

from dataclasses import replace

import pytest
import torch

from tests.methods.images import image, make
from vtc import VTCError


def test_single_tile_has_the_official_order():
    tokens = image(grid=(12, 12), newline=False)
    method = make("recoverable")
    plan, out = method.recover(tokens), method.compress(tokens)
    main = int(plan.main.sum())
    assert int(plan.counts.centre) > 0 and bool(plan.counts.extra)
    assert torch.equal(out.patch[:main], plan.main[0].nonzero().squeeze(1))
    attention = plan.visual[0, out.patch[main:-1]]
    assert bool((attention.diff() <= 0).all())
    assert out.weight[:main].tolist() == [1] * main and bool((out.weight[main:-1] == 33).all())
    loose = plan.rest[0].clone()
    loose[out.patch[main:-1]] = False
    want = (plan.visual[0, loose, None] * tokens.features[0, loose]).sum(0)
    torch.testing.assert_close(out.features[-1], want, rtol=1e-4, atol=1e-6)
    assert int(out.weight[-1]) == int(loose.sum())


def test_tiles_are_treated_as_if_alone():
    tokens = image(grid=(8, 8), crops=(2, 2), size=(500, 500), newline=False)
    together = make("recoverable").recover(tokens)
    per_tile = ("cls_query", "keys", "patch_embedding")
    for tile in range(5):
        signals = {
            name: value[tile : tile + 1] if name in per_tile else value
            for name, value in tokens.signals.items()
        }
        alone = make("recoverable").recover(
            replace(
                tokens,
                features=tokens.features[tile : tile + 1],
                tile_grid=None,
                signals=signals,
            )
        )
        assert torch.equal(alone.main[0], together.main[tile])
        assert int(alone.counts.centre) == int(together.counts.centre[tile])


def test_the_question_changes_what_is_recovered():
    tokens = image(grid=(12, 12), newline=False)
    patch = int(make("recoverable").recover(tokens).rest[0].nonzero()[5])
    asked = {**tokens.signals, "text_embedding": tokens.signals["patch_embedding"][0, patch] * 9}
    plan = make("recoverable").recover(replace(tokens, signals=asked))
    assert bool(plan.main[0, patch])
    assert torch.equal(
        plan.visual_order, make("recoverable").recover(tokens).visual_order
    )  # the visual filter does not see it


def test_a_budget_keeps_the_proportions_of_the_kinds():
    tokens = image(grid=(12, 12), newline=False)
    own = make("recoverable").recover(tokens)
    plan = make("recoverable", retention=0.5).recover(tokens)
    assert int(plan.counts.total) == 72
    scale = 72 / int(own.counts.total)
    assert abs(int(plan.counts.visual) - scale * int(own.counts.visual)) <= 1
    assert abs(int(plan.counts.text) - scale * int(own.counts.text)) <= 1
    assert int(plan.counts.text) == 0 or not bool(
        (
            plan.visual_order[0, : int(plan.counts.visual), None]
            == plan.text_order[0, : int(plan.counts.text)]
        ).any()
    )


@pytest.mark.parametrize("variant", ["sequential", "union"])
def test_without_any_outlier_something_stays(variant):
    tokens = image(newline=False)
    flat = {name: torch.ones_like(value) for name, value in tokens.signals.items()}
    out = make("recoverable", variant=variant).compress(replace(tokens, signals=flat))
    assert len(out) == 1
    if variant == "sequential":
        assert out.patch.tolist() == [0] and torch.equal(out.features, tokens.features[0, :1])
    else:  # its extra token is always there
        assert int(out.weight) == 64


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("variant", ["sequential", "union"])
def test_tiny_tiles_do_not_crash(size, variant):
    for seed in range(20):
        tokens = image(grid=(1, size), newline=False, seed=seed)
        out = make("recoverable", variant=variant).compress(tokens)
        assert 1 <= len(out) <= size
        assert len(out.anchor.unique()) == len(out)


def test_more_centres_than_patches_left_are_cut():
    tokens = image(grid=(6, 6), newline=False)
    wide = torch.randn(1, 36, 4096)
    plan = make("recoverable", rest_k=2).recover(replace(tokens, features=wide))
    assert int(plan.counts.centre) <= int(plan.rest.sum())
    out = make("recoverable", rest_k=2).compress(replace(tokens, features=wide))
    assert len(out) == int(plan.counts.total) <= 36


def test_corrected_fields_change_what_they_name():
    tokens = image(grid=(12, 12), newline=False)
    official = make("recoverable").recover(tokens)
    tokenwise = make("recoverable", centres="tokens").recover(tokens)
    aligned = make("recoverable", keys="aligned").recover(tokens)
    found = int(((official.factor_rest < -1.5) & official.rest).sum())
    left = int(official.rest.sum())
    assert int(official.counts.centre) == 16 * found // left  # 16 channels
    assert abs(int(tokenwise.counts.centre) - found) <= 1  # rounded down from a float64 ratio
    exact = make("recoverable", centres="tokens", rounding="exact").recover(tokens)
    assert int(exact.counts.centre) == found
    assert torch.equal(aligned.centre_order, official.centre_order)
    assert not torch.equal(aligned.members, official.members)


def test_without_cls_attention_received_is_the_visual_score():
    tokens = image(has_cls=False, newline=False)
    method = make("recoverable")
    assert {r.kind for r in method.requests(has_cls=False).values()} == {
        "attention_received",
        "keys",
        "patch_embedding",
        "text_embedding",
    }
    plan = method.recover(tokens)
    assert torch.equal(plan.visual, tokens.signals["attention_received"])


def test_newline_rows_are_left_to_the_projector():
    tokens = replace(image(crops=(2, 2)), newline=torch.ones(99))
    out = make("recoverable", retention=0.3).compress(tokens)
    assert bool((out.features[~out.is_patch] == 0).all()) and int((~out.is_patch).sum()) > 0


def test_fields_are_checked():
    for options, text in (
        ({"variant": "active"}, "variant: got 'active', allowed are sequential, union"),
        ({"text_source": "prompt"}, "text_source: got 'prompt'"),
        ({"rest_k": 0}, "rest_k: got 0, allowed are whole numbers >= 1"),
    ):
        with pytest.raises(VTCError, match=text):
            make("recoverable", **options)
