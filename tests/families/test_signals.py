"""Signals follow the tokens: what a patch of the tower has to do with what the model packs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

import vtc
from tests.families import tiny
from tests.families.matrix import cases
from tests.hf.methods import Spy
from vtc.plugins.hf.adapters.base import Call
from vtc.plugins.hf.stages.boundary.tower import run_encoder
from vtc.plugins.model.families import units_of
from vtc.plugins.model.fusing import window_order
from vtc.plugins.model.layers import layers_read
from vtc.plugins.model.mosaic import arrangement
from vtc.plugins.model.signals import masked_attention_received
from vtc.plugins.model.units import places

IDS = {"image": tiny.IMAGE, "video": tiny.VIDEO}


def patched(model: Any) -> Any:
    """The patch of an even selection; skips where this transformers cannot do the family."""
    try:
        with vtc.compress(model, "uniform", retention=0.5) as run:
            return run._patch
    except vtc.VTCError as error:
        pytest.skip(str(error))


def call_of(model: Any, batch: dict[str, Any], kind: str) -> Call:
    """One run of an encoder, as the plug-in makes it."""
    with torch.no_grad(), vtc.compress(model, "uniform", retention=0.5) as run:
        ids = batch["input_ids"]
        return run_encoder(run._patch, model.model, batch, kind, ids, ids == IDS[kind], {})


FUSED_AS_KNOWN = [case for case in cases() if case[0] != tiny.UNKNOWN]


@pytest.mark.parametrize("family,video", FUSED_AS_KNOWN)
def test_a_patch_moves_the_tokens_that_fuse_says(family: str, video: bool) -> None:
    """Nudging one patch behind the last attention changes the tokens made of it, and no others."""
    if family == "llava_onevision_shrunk":
        pytest.skip("a shrunk canvas goes by the nearest patch")
    model, kind = tiny.build(family), "video" if video else "image"
    rows = [[tiny.CLIP]] if video else [[tiny.A], [tiny.C]]
    batch = tiny.inputs(family, rows)
    adapter = patched(model).adapter
    layers = adapter.layers(model.model, kind)
    config = model.model.config
    feature = getattr(config, "vision_feature_layer", None)
    if feature is None:  # VipLLaVA's name for it in older versions
        feature = getattr(config, "vision_feature_layers", None)
    last = len(layers) - 1 if feature is None else max(layers_read(feature, len(layers))) - 1
    cls = int(adapter.has_cls(model.model))
    where: list[int] = []

    def nudge(module: Any, args: Any, output: Any) -> Any:
        out = (output[0] if isinstance(output, tuple) else output).clone()
        patches = out[:, cls:] if out.dim() == 3 else out[None]
        flat = patches.reshape(-1, patches.shape[-1])
        for index in where:
            row, col = divmod(index, patches.shape[1])
            flat = flat.clone()
            flat[index] += 5 * torch.randn(
                flat.shape[1], generator=torch.Generator().manual_seed(row + col)
            )
        patches = flat.view_as(patches)
        new = torch.cat([out[:, :cls], patches], 1) if out.dim() == 3 else patches[0]
        return (new, *output[1:]) if isinstance(output, tuple) else new

    layers[last].register_forward_hook(nudge)  # before the first run: recorders come behind it
    count = []
    layers[last].register_forward_hook(
        lambda m, a, o: count.append(o[0] if isinstance(o, tuple) else o)
    )

    def packed() -> Tensor:
        pooled = call_of(model, batch, kind).output.pooler_output
        return torch.cat([part.flatten(0, -2) for part in pooled])

    plain = packed()
    hidden = count[0]
    patches = hidden[:, cls:].flatten(0, 1).shape[0] if hidden.dim() == 3 else len(hidden)
    call = call_of(model, batch, kind)
    units = adapter.units(call)
    token = torch.full((len(plain),), -1)
    start = 0
    for place, unit in zip(places(units), units, strict=True):
        total = sum(u.tiles * u.patches for u in units)
        row_of = place.patches_of(torch.arange(total))
        layout = unit.layout
        mine = layout.is_patch
        token[start : start + len(layout)][mine] = row_of[layout.tile[mine], layout.patch[mine]]
        start += len(layout)
    for index in torch.linspace(0, patches - 1, 7).long().tolist():
        where[:] = [index]
        moved = (packed() - plain).abs().amax(1) > 1e-4
        one = torch.zeros(patches, 1)
        one[index] = 1
        expected = adapter.fuse(call, one)[:, 0] > 0
        assert torch.equal(moved[token >= 0], expected[token[token >= 0]]), index


@pytest.mark.parametrize("family,video", FUSED_AS_KNOWN)
def test_attention_received_is_a_distribution(family: str, video: bool) -> None:
    """Without CLS it sums to 1 over the tokens of every tile, fused or not, windows or not."""
    model = tiny.build(family)
    if patched(model).has_cls:
        pytest.skip("the tower has CLS")
    batch = tiny.inputs(family, tiny.rows_of(family, video))
    for layer in (0, -1):
        Spy.seen.clear()
        method = Spy(retention=0.5, wanted=("attention_received", "keys"), layer=layer)
        with torch.no_grad(), vtc.compress(model, method):
            model(**batch)
        for tokens in Spy.seen:
            received, keys = tokens.signal("attention_received"), tokens.signal("keys")
            torch.testing.assert_close(received.sum(1), torch.ones(len(received)))
            assert keys.shape[:2] == tokens.features.shape[:2]


def test_window_order_is_transformers() -> None:
    """Qwen2.5: the order of tokens in the tower."""
    model = tiny.build("qwen2_5_vl")
    batch = tiny.inputs("qwen2_5_vl", [[("image", (96, 160)), tiny.A], [tiny.C]])
    theirs, _ = get_vision_window_index(
        batch["image_grid_thw"], spatial_merge_size=2, window_size=32, patch_size=tiny.PATCH
    )
    assert torch.equal(window_order(model.config, units_of(model.config, batch)), theirs)


@pytest.mark.parametrize("grid", [(1, 2), (2, 1), (2, 2), (3, 1), (1, 6), (2, 3), (3, 4), (4, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_arrangement_of_crops(grid: tuple[int, int], seed: int) -> None:
    image = tiny.picture((grid[0] * 40, grid[1] * 40), torch.Generator().manual_seed(seed))
    thumbnail, *crops = tiny.cut(image, grid)
    assert arrangement(torch.stack(crops), thumbnail) == grid


@pytest.mark.parametrize("boolean", [True, False])
def test_masked_attention_received(boolean: bool) -> None:
    """Two packed images and padding, against dense attention of each part."""
    rng = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 3, 12, 8, generator=rng)
    allowed = torch.zeros(1, 1, 12, 12, dtype=torch.bool)
    allowed[..., :5, :5] = allowed[..., 5:10, 5:10] = True
    mask = allowed if boolean else (~allowed).float() * torch.finfo(torch.float32).min
    got = masked_attention_received(query, key, 0.3, mask, block=4)
    for part in (slice(0, 5), slice(5, 10)):
        scores = (query[:, :, part] @ key[:, :, part].transpose(-1, -2) * 0.3).softmax(-1)
        torch.testing.assert_close(got[:, part], scores.mean((1, 2)))
    assert not got[:, 10:].any()
