"""GlobalCom2 beyond its golden vectors."""

from dataclasses import replace

import pytest
import torch

from tests.methods.images import image, make
from vtc import VTCError
from vtc.tokens import SignalRequest


def crop_sets(out):
    return [sorted(out.patch[out.tile == t].tolist()) for t in range(5)]


def test_placements_keep_the_same_patches_in_another_order():
    tokens = image(crops=(2, 2), size=(300, 1000), unpad="official")
    official, spatial = (
        make("globalcom2", retention=0.4, placement=p).compress(tokens)
        for p in ("official", "spatial")
    )
    assert crop_sets(official) == crop_sets(spatial)
    assert not torch.equal(official.anchor, spatial.anchor)
    crops = spatial.tile >= 1
    assert bool((spatial.anchor[crops].diff() > 0).all())
    for tile in range(1, 5):  # inside a crop the order is the raster order in both
        assert bool((official.patch[official.tile == tile].diff() > 0).all())


def test_placements_agree_without_padding():
    tokens = image(crops=(2, 2), size=(500, 500))
    a, b = (
        make("globalcom2", retention=0.4, placement=p).compress(tokens)
        for p in ("official", "spatial")
    )
    assert torch.equal(a.anchor, b.anchor)


def test_newlines_of_padded_rows_borrow_the_nearest_anchor():
    tokens = image(crops=(2, 2), size=(300, 1000), unpad="official")
    top, bottom, _, _ = make("globalcom2").region(tokens)
    every = make("globalcom2", retention=0.3).compress(tokens)
    valid = make("globalcom2", retention=0.3, newline_rows="valid").compress(tokens)
    rows = [int(tokens.layout.row[a]) for a in every.anchor[~every.is_patch]]
    assert rows == [min(max(y, top), bottom - 1) for y in range(16)]
    assert int((~valid.is_patch).sum()) == bottom - top
    assert torch.equal(every.features[every.is_patch], valid.features[valid.is_patch])


def test_thumbnail_comes_by_score_or_in_raster_order():
    tokens = image(crops=(2, 2))
    by_score = make("globalcom2", retention=0.3).compress(tokens)
    raster = make("globalcom2", retention=0.3, thumbnail_order="raster").compress(tokens)
    first = by_score.patch[by_score.tile == 0]
    scores = tokens.signals["cls_logits"][0, first]
    assert bool((scores.diff() <= 0).all())
    assert torch.equal(raster.patch[raster.tile == 0], first.sort().values)


def test_a_single_tile_keeps_its_best_patches():
    tokens = image()
    out = make("globalcom2", retention=0.25).compress(tokens)
    best = tokens.signals["cls_logits"][0].topk(16).indices.sort().values
    assert torch.equal(out.patch[out.is_patch], best) and len(out) == 17
    whole = make("globalcom2", retention=0.25, single_tile="official").compress(tokens)
    assert len(whole) == 65


def test_a_rich_crop_gets_more():
    tokens = image(crops=(2, 2), size=(500, 500))
    scores = tokens.signals["cls_logits"].clone()
    scores[0].view(8, 8)[4:, 4:] += 1
    tokens = replace(tokens, signals={"cls_logits": scores})
    kept = torch.bincount(make("globalcom2", retention=0.25).choose(tokens).keep.nonzero()[:, 0])
    assert int(kept[1:].argmax()) == 3 and int(kept[4]) > int(kept[1:4].max())


def test_probabilities_give_all_crops_nearly_the_same():
    tokens = image(crops=(2, 2), size=(500, 500))
    ratios = make("globalcom2", retention=0.25, score="probabilities").choose(tokens).ratios
    assert float((ratios - 0.25).abs().max()) < 0.25 * 0.02


def test_without_cls_attention_received_takes_its_place_on_the_scale_of_logits():
    method = make("globalcom2", layer=0.5)
    request = SignalRequest("attention_received", 0.5)
    assert method.requests(has_cls=False) == {"attention_received": request}
    tokens = image(crops=(2, 2), has_cls=False)
    received = tokens.signals["attention_received"]
    torch.testing.assert_close(method.scores(tokens), torch.log(received * 64))
    zero = replace(tokens, signals={"attention_received": torch.zeros_like(received)})
    assert bool(method.scores(zero).isfinite().all())


def test_tiny_retention_keeps_the_best_thumbnail_patch():
    tokens = image(crops=(2, 2))
    out = make("globalcom2", retention=0.001).compress(tokens)
    assert out.tile[out.is_patch].tolist() == [0]
    assert int(out.patch[out.is_patch]) == int(tokens.signals["cls_logits"][0].argmax())


@pytest.mark.parametrize("unpad", ["hf", "official"])
@pytest.mark.parametrize("size", [(3000, 20), (20, 3000)])
def test_extreme_aspect_ratios(size, unpad):
    tokens = image(crops=(2, 2), size=size, unpad=unpad)
    out = make("globalcom2", retention=0.5).compress(tokens)
    assert int((out.tile == 0).sum()) == 32 and len(out) >= 32


def test_choices_are_checked():
    for options, text in (
        (
            {"placement": "ofical"},
            "placement: got 'ofical', allowed are official, spatial; did you",
        ),
        ({"score": 3}, "score: got 3, allowed are logits, probabilities"),
        ({"tau": 0}, "tau: got 0, allowed are numbers >= 1e-06"),
        ({"layer": 1.5}, "layer: got 1.5"),
    ):
        with pytest.raises(VTCError, match=text):
            make("globalcom2", **options)
    with pytest.raises(VTCError, match="tile_grid: got None"):
        make("globalcom2").choose(image())
