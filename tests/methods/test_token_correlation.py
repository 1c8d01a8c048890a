"""Token-level correlation-guided compression beyond its golden vectors."""

from dataclasses import replace

import pytest
import torch

from tests.methods.images import image, make
from vtc import VTCError
from vtc.tokens import SignalRequest


def repetitive(crops=(2, 2)):
    """An image whose second half of every tile repeats one key."""
    tokens = image(crops=crops, newline=False)
    keys = tokens.signals["shallow_keys"].clone()
    keys[:, 33:] = keys[:, 33:34]
    return replace(tokens, signals={**tokens.signals, "shallow_keys": keys})


def test_own_count_is_density_plus_outliers():
    tokens = repetitive(None)
    out = make("token_correlation").compress(tokens)
    deep = tokens.signals["deep_attention"][0]
    low, high = torch.quantile(deep, torch.tensor([0.25, 0.75]))
    outliers = deep > high + 1.5 * (high - low)
    local = tokens.signals["shallow_attention"][0].topk(32).indices
    want = outliers.clone()
    want[local] = True
    assert torch.equal(out.patch, want.nonzero().squeeze(1)) and int(outliers.sum()) > 0


def test_thumbnail_stays_whole_unless_asked():
    tokens = repetitive()
    assert int((make("token_correlation").compress(tokens).tile == 0).sum()) == 64
    kept = int((make("token_correlation", thumbnail=True).compress(tokens).tile == 0).sum())
    assert 32 <= kept < 64


def test_a_budget_cuts_or_tops_up_the_ranking():
    tokens = repetitive(None)
    own = set(make("token_correlation").compress(tokens).patch.tolist())
    less = set(make("token_correlation", tokens=len(own) - 5).compress(tokens).patch.tolist())
    more = set(make("token_correlation", tokens=len(own) + 5).compress(tokens).patch.tolist())
    exact = set(make("token_correlation", tokens=len(own)).compress(tokens).patch.tolist())
    assert less < own < more and exact == own


def test_tiles_share_a_budget_by_their_own_counts():
    tokens = repetitive()
    keys = tokens.signals["shallow_keys"].clone()
    keys[1] = keys[1, :1]  # one crop holds nothing new
    tokens = replace(tokens, signals={**tokens.signals, "shallow_keys": keys})
    out = make("token_correlation", retention=0.4).compress(tokens)
    kept = torch.bincount(out.tile)
    assert int(kept[1]) < int(kept[2:].min()) / 2 and int(kept[0]) > int(kept[2:].max())


def test_sampling_is_seeded_by_seed_and_image():
    tokens = repetitive()
    draw = make("token_correlation", sample=True).compress(tokens).anchor
    assert torch.equal(make("token_correlation", sample=True).compress(tokens).anchor, draw)
    assert not torch.equal(
        make("token_correlation", sample=True, seed=1).compress(tokens).anchor, draw
    )
    other = replace(tokens, content_seed=9)
    assert not torch.equal(make("token_correlation", sample=True).compress(other).anchor, draw)
    assert not torch.equal(make("token_correlation").compress(tokens).anchor, draw)


def test_keys_may_come_with_or_without_cls():
    tokens = repetitive()
    keys = tokens.signals["shallow_keys"]
    without = replace(tokens, signals={**tokens.signals, "shallow_keys": keys[:, 1:]})
    a, b = (make("token_correlation").compress(t).anchor for t in (tokens, without))
    assert torch.equal(a, b)


def test_padding_takes_no_part():
    tokens = replace(repetitive(), image_size=(300, 1000))
    before = make("token_correlation").compress(tokens)
    noise = {**tokens.signals}
    valid = tokens.valid
    for name, value in noise.items():
        if name.startswith(("shallow", "deep")):
            rows = value.clone()
            rows[:, value.shape[1] - 64 :][~valid] = 5.0 if value.dim() == 2 else 1.0
            noise[name] = rows
    after = make("token_correlation").compress(replace(tokens, signals=noise))
    assert torch.equal(before.anchor, after.anchor)


def test_all_identical_patches_and_flat_attention_keep_one_a_crop():
    tokens = image(crops=(2, 2), newline=False)
    flat = {
        "shallow_keys": torch.ones(5, 64, 4),
        "shallow_attention": torch.full((5, 64), 1 / 64),
        "deep_attention": torch.full((5, 64), 1 / 64),
    }
    out = make("token_correlation").compress(replace(tokens, signals=flat))
    assert torch.bincount(out.tile).tolist() == [64, 1, 1, 1, 1]


def test_requests_name_layers_and_kinds():
    method = make("token_correlation", shallow_layer=3)
    assert method.requests() == {
        "shallow_keys": SignalRequest("keys", 3),
        "shallow_attention": SignalRequest("cls_attention", 3),
        "deep_attention": SignalRequest("cls_attention", -1),
    }
    assert method.requests(has_cls=False)["deep_attention"].kind == "attention_received"


def test_fields_are_checked():
    with pytest.raises(VTCError, match="alpha: got 1.5, allowed are numbers from -1 to 1"):
        make("token_correlation", alpha=1.5)
    with pytest.raises(VTCError, match="shallow_layer: got 2.5"):
        make("token_correlation", shallow_layer=2.5)
