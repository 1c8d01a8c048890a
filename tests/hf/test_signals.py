"""Signals equal what eager attention says."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests.hf import tiny
from tests.hf.methods import KINDS, Spy
from vtc.plugins.model.layers import layer_index
from vtc.tokens import VisualTokens

KINDS_OF_SIGNALS = (
    "cls_logits",
    "cls_attention",
    "attention_received",
    "cls_query",
    "keys",
    "last_hidden",
)


def seen(family: str, wanted: list[str], layer: int | float) -> tuple[list[VisualTokens], dict]:
    """The tokens that a method is shown, and what eager attention gives for the same pixels."""
    model, batch = tiny.build(family), tiny.inputs(family, [[(40, 60), (64, 64)]])
    Spy.seen.clear()
    with torch.no_grad():
        with vtc.compress(model, Spy(0.5, wanted=wanted, layer=layer)):
            model(**batch)
        model.set_attn_implementation("eager")
        tower, pixels = model.model.vision_tower, batch["pixel_values"]
        if pixels.dim() == 5:
            tiles = [tokens.features.shape[0] for tokens in Spy.seen]
            pixels = torch.cat([p[:n] for p, n in zip(pixels, tiles, strict=True)])
        eager = tower(pixels, output_attentions=True, output_hidden_states=True)
        block = tower.encoder.layers[layer_index(layer, 4)]
        x = block.layer_norm1(eager.hidden_states[layer_index(layer, 4)])
        attention = eager.attentions[layer_index(layer, 4)]
        query, key = block.self_attn.q_proj(x), block.self_attn.k_proj(x)
        logits = torch.einsum(
            "bhd,blhd->bl", query[:, 0].unflatten(-1, (4, 8)), key.unflatten(-1, (4, 8))
        )
        skip = int(family != "llava-siglip" and family != "next-siglip")
        want = {
            "attention_received": attention.mean((1, 2))[:, skip:],
            "keys": key,
            "last_hidden": eager.hidden_states[-1][:, skip:],
            "cls_attention": attention[:, :, 0, 1:].mean(1),
            "cls_query": query[:, 0],
            "cls_logits": logits[:, 1:] / 4 * 8**-0.5,
        }
    return list(Spy.seen), want


@pytest.mark.parametrize("layer", [-1, -2, 0, 2, 0.5])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_signals_equal_eager_attention(family: str, layer: int | float) -> None:
    """Every kind, any layer, dealt to the tiles of each image."""
    wanted = list(KINDS_OF_SIGNALS)
    if "siglip" in family:
        wanted = [kind for kind in wanted if not kind.startswith("cls_")]
    images, want = seen(family, wanted, layer)
    assert len(images) == 2
    start = 0
    for tokens in images:
        stop = start + tokens.features.shape[0]
        assert sorted(tokens.signals) == sorted(wanted)
        for kind in wanted:
            torch.testing.assert_close(
                tokens.signal(kind), want[kind][start:stop], atol=2e-5, rtol=1e-4
            )
        start = stop


@pytest.mark.parametrize("family", ["llava-clip", "next-siglip"])
def test_only_what_is_asked_for_is_captured(family: str) -> None:
    """A method that reads nothing is shown nothing and no layer is probed."""
    images, _ = seen(family, [], -1)
    assert all(tokens.signals == {} for tokens in images)
    model = tiny.build(family)
    with vtc.compress(model, KINDS["norms"]):
        assert not any(hasattr(getattr(m, "config", None), "vtc_layer") for m in model.modules())


@pytest.mark.parametrize(
    ("layer", "depth", "index"),
    [(-1, 24, 23), (0, 24, 0), (23, 24, 23), (-24, 24, 0), (0.5, 24, 11), (0.99, 24, 23),
     (0.01, 24, 0), (1, 24, 1), (1 / 3, 24, 7), (2.0, 24, 2)],
)  # fmt: skip
def test_layer_index(layer: int | float, depth: int, index: int) -> None:
    """Ints count as Python indices, floats in (0, 1) are a share of the depth."""
    assert layer_index(layer, depth) == index


@pytest.mark.parametrize("family", ["next-clip", "next-siglip"])
def test_content_seed_follows_the_pixels(family: str) -> None:
    """The seed of an image is the same wherever it stands, and differs between images."""

    class Draws(Spy):
        draws = True

    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    Spy.seen.clear()
    with torch.no_grad(), vtc.compress(model, Draws(0.5)):
        model(**batch)
        together = [tokens.content_seed for tokens in Spy.seen]
        Spy.seen.clear()
        for i, images in enumerate(tiny.MIXED):
            if images:
                model(**tiny.row(batch, tiny.MIXED, i))
    assert together == [tokens.content_seed for tokens in Spy.seen]
    assert len(set(together)) == len(together)
