"""Signals that methods read beside attention: each against what is worked out here by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

import vtc
from tests.families import mllama, tiny
from tests.families.matrix import cases
from tests.families.test_signals import FUSED_AS_KNOWN, patched
from tests.families.test_text_similarity import tokenizer  # noqa: F401  (a fixture)
from tests.hf.methods import Spy
from vtc import AsksText, VTCError
from vtc.plugins.model.layers import layers_read
from vtc.plugins.model.signals import token_pixels

FAMILIES = [case for case in FUSED_AS_KNOWN if case[0] != "llava_onevision_shrunk"]


def seen(family: str, video: bool, *wanted: str, layer: Any = -1, **options: Any) -> Any:
    """The model, its inputs, and the images as a method is given them."""
    model = tiny.built(family)
    batch = tiny.inputs(family, [[tiny.CLIP]] if video else [[tiny.A], [tiny.C]])
    Spy.seen.clear()
    method = Spy(retention=0.5, wanted=wanted, layer=layer)
    with torch.no_grad(), vtc.compress(model, method, **options):
        model(**batch)
    return model, batch, list(Spy.seen)


@pytest.mark.parametrize("family,video", FAMILIES)
def test_the_mean_of_the_keys(family: str, video: bool) -> None:
    model, _, images = seen(family, video, "keys", "key_mean", layer="read")
    config = patched(model).adapter.tower(model.model).config
    heads = getattr(config, "num_attention_heads", None) or config.num_heads
    for tokens in images:
        keys, mean = tokens.signal("keys"), tokens.signal("key_mean")
        torch.testing.assert_close(keys.unflatten(2, (heads, -1)).mean(2), mean)


@pytest.mark.parametrize("family,video", FAMILIES)
def test_what_the_projector_is_given(family: str, video: bool) -> None:
    model = tiny.built(family)
    adapter, given = patched(model).adapter, []
    projector = adapter.projector(model.model)
    handle = projector.register_forward_pre_hook(lambda m, args: given.append(args[0].detach()))
    batch = tiny.inputs(family, [[tiny.CLIP]] if video else [[tiny.A], [tiny.C]])
    Spy.seen.clear()
    with torch.no_grad(), vtc.compress(model, Spy(retention=0.5, wanted=("projector_input",))):
        model(**batch)
    handle.remove()
    rows = given[0].flatten(0, -2)
    for tokens in Spy.seen:
        values = tokens.signal("projector_input")
        assert values.shape == (*tokens.features.shape[:2], rows.shape[-1])
        if not adapter.fuses and not video:  # a row of the input each
            found = (values.flatten(0, 1)[:, None] == rows).all(-1).any(1)
            assert bool(found.all())
    whole = torch.cat([t.signal("projector_input").flatten(0, 1) for t in Spy.seen])
    pooled = video and family == "llava_onevision"  # behind the projector
    if not adapter.fuses and not pooled and family != "video_llava":
        assert len(whole) == len(rows)


def test_fused_rows_are_means_of_the_patches_of_a_token() -> None:
    """Qwen2-VL, where the patches of a token follow each other."""
    model = tiny.built("qwen2_vl")
    given: list[Tensor] = []
    model.model.visual.merger.register_forward_pre_hook(lambda m, args: given.append(args[0]))
    Spy.seen.clear()
    with torch.no_grad(), vtc.compress(model, Spy(retention=0.5, wanted=("projector_input",))):
        model(**tiny.inputs("qwen2_vl", [[tiny.A], [tiny.C]]))
    want = given[0].view(-1, 4, given[0].shape[-1]).mean(1)
    got = torch.cat([t.signal("projector_input").flatten(0, 1) for t in Spy.seen])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("family", ["llava", "llava_next", "vipllava"])
def test_cls_of_the_layer_that_is_read(family: str) -> None:
    model, batch, images = seen(family, False, "cls_hidden", layer="read")
    tower = patched(model).adapter.tower(model.model)
    depth = tower.config.num_hidden_layers
    feature = getattr(model.config, "vision_feature_layer", None)
    feature = model.config.vision_feature_layers if feature is None else feature
    pixels = batch["pixel_values"]
    with torch.no_grad():
        states = tower(pixels.flatten(0, -4), output_hidden_states=True).hidden_states
    want = states[max(layers_read(feature, depth))][:, 0]
    got = torch.cat([tokens.signal("cls_hidden") for tokens in images])
    for row in got:
        assert bool(torch.isclose(want, row, atol=1e-5).all(1).any())


def test_cls_is_refused_where_there_is_none() -> None:
    with pytest.raises(VTCError, match="'spy' needs cls_hidden, but this vision tower has no CLS"):
        vtc.apply(tiny.build("qwen2_vl"), Spy(retention=0.5, wanted=("cls_hidden",)))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_words_of_the_question(family: str, tokenizer: Any) -> None:  # noqa: F811
    model = tiny.built(family)
    Spy.seen.clear()

    @dataclass
    class Asks(AsksText, Spy):
        pass

    method = Asks(0.5, wanted=("question_tokens",), question="what is red")
    with torch.no_grad(), vtc.compress(model, method, processor=tokenizer):
        model(**tiny.inputs(family, [[tiny.A]]))
    words = model.get_input_embeddings()(torch.tensor([20, 21, 22]))
    assert torch.equal(Spy.seen[0].signal("question_tokens"), words)


TILED = [case for case in FAMILIES if not case[0].startswith("qwen")]


@pytest.mark.parametrize("family,video", TILED)
def test_pixels_behind_a_token(family: str, video: bool) -> None:
    """By their place in what the processor made: of a token's tile, row and column."""
    model = tiny.built(family)
    batch = tiny.inputs(family, [[tiny.CLIP]] if video else [[tiny.A], [tiny.C]])
    key = "pixel_values_videos" if video else "pixel_values"
    numbers = torch.linspace(0.1, 1, batch[key].numel()).view_as(batch[key])
    numbers = numbers.where(batch[key] != 0, 0)  # what pads the batch
    Spy.seen.clear()
    with torch.no_grad(), vtc.compress(model, Spy(retention=0.5, wanted=("pixels",))):
        model(**{**batch, key: numbers})
    place = {float(n): i for i, n in enumerate(numbers.flatten()) if n}
    height, width = batch[key].shape[-2:]
    tiles_seen: list[int] = []
    for tokens in Spy.seen:
        values, (rows, cols) = tokens.signal("pixels"), tokens.patch_grid
        assert values.shape[:2] == tokens.features.shape[:2]
        high, wide = (
            (tiny.PATCH,) * 2 if family == "llava_pixtral" else (height // rows, width // cols)
        )
        for tile in values:
            found = torch.tensor([[place[float(v)] for v in cell] for cell in tile])
            y, x = found // width % height, found % width
            token = torch.arange(rows * cols)[:, None]
            assert bool((y // high == token // cols).all() and (x // wide == token % cols).all())
            of = found // (3 * height * width)
            assert len(of.unique()) == 1 and found.shape[1] == 3 * high * wide
            tiles_seen.append(int(of[0, 0]))
    assert len(set(tiles_seen)) == len(tiles_seen)


def test_cells_of_a_tile() -> None:
    tiles = torch.arange(2 * 3 * 7 * 9).view(2, 3, 7, 9)
    cells = token_pixels(tiles, (3, 2), (2, 4))
    for tile in range(2):
        for row in range(3):
            for col in range(2):
                want = tiles[tile, :, 2 * row : 2 * row + 2, 4 * col : 4 * col + 4].flatten()
                assert torch.equal(cells[tile, 2 * row + col], want)


def test_first_frames_of_qwen() -> None:
    """A row of its input is channel, frame, row, column; four rows are a token."""
    _, batch, images = seen("qwen2_vl", False, "pixels")
    rows = batch["pixel_values"]
    size = tiny.PATCH**2
    first = rows.view(len(rows), 3, 2, size)[:, :, 0].reshape(len(rows), -1)
    want = first.view(-1, 4 * first.shape[1])
    got = torch.cat([t.signals["pixels"].flatten(0, 1) for t in images])
    assert torch.equal(got, want)


@pytest.mark.parametrize("kind", ["projector_input", "pixels", "pool_output", "question_tokens"])
def test_cross_attention_refuses_what_it_does_not_have(kind: str) -> None:
    with pytest.raises(VTCError, match="by cross-attention"):
        vtc.apply(mllama.build(), Spy(retention=0.5, wanted=(kind,)))


def test_every_family_is_here() -> None:
    left = {case[0] for case in cases()} - {case[0] for case in FAMILIES}
    assert left == {tiny.UNKNOWN, "llava_onevision_shrunk"}


def test_a_pooling_head() -> None:
    """SigLIP's, run whole by itself: its output, and attention that sums to 1 over the patches."""
    model = tiny.built("llava_siglip")
    tower = model.model.vision_tower
    wanted = ("pool_attention", "pool_output", "last_hidden")
    with pytest.raises(VTCError, match="has no pooling head"):
        vtc.apply(model, Spy(retention=0.5, wanted=wanted))
    torch.manual_seed(0)
    owner = getattr(tower, "vision_model", tower)
    owner.head = SiglipMultiheadAttentionPoolingHead(tower.config).eval()
    Spy.seen.clear()
    with torch.no_grad(), vtc.compress(model, Spy(retention=0.5, wanted=wanted)):
        model(**tiny.inputs("llava_siglip", [[tiny.A], [tiny.C]]))
    for tokens in Spy.seen:
        attention, hidden = tokens.signal("pool_attention"), tokens.signal("last_hidden")
        torch.testing.assert_close(attention.sum(1), torch.ones(len(attention)))
        with torch.no_grad():
            normed = owner.post_layernorm(hidden)
            torch.testing.assert_close(tokens.signal("pool_output"), owner.head(normed))
