"""Mllama: cross-attention over fewer patches equals cross-attention with the others masked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from transformers.models.mllama.modeling_mllama import _prepare_cross_attention_mask

import vtc
from tests.families import tiny
from tests.families.matrix import METHODS, text_encoder
from tests.hf.tiny import snapshot

SIDE, PATCHES = 4, 17
GREEDY = dict(max_new_tokens=5, do_sample=False)


def build() -> Any:
    torch.manual_seed(0)
    vision = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_global_layers=2,
        attention_heads=4,
        image_size=32,
        patch_size=8,
        max_num_tiles=4,
        intermediate_layers_indices=[1, 2],
        vision_output_dim=96,
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1], [2, 2]],
    )
    text = {**tiny.TEXT, "num_hidden_layers": 4, "cross_attention_layers": [1, 3]}
    model = tf.MllamaForConditionalGeneration(
        tf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=tiny.IMAGE)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name:
                parameter.fill_(1.0)  # closed at the start: images would not matter
    return tiny.finished(model)


def batch(rows: tuple[int, ...] = (4, 2)) -> dict[str, Tensor]:
    """One image a row, with that many tiles, left-padded text."""
    rng = torch.Generator().manual_seed(0)
    count, length = len(rows), 10
    pixels = torch.randn(count, 1, 4, 3, 32, 32, generator=rng)
    ids = torch.randint(*tiny.WORDS, (count, length), generator=rng)
    ids[:, 2] = tiny.IMAGE
    mask = torch.ones(count, length, dtype=torch.long)
    tiles = torch.zeros(count, 1, 4, dtype=torch.long)
    cross = torch.zeros(count, length, 1, 4, dtype=torch.long)
    for row, number in enumerate(rows):
        tiles[row, 0, :number] = 1
        cross[row, 2:, 0, :number] = 1
        pixels[row, 0, number:] = 0
    ratios = torch.tensor([[4 if number == 4 else 2] for number in rows])
    return dict(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=pixels,
        aspect_ratio_mask=tiles,
        aspect_ratio_ids=ratios,
        cross_attention_mask=cross,
    )


@torch.no_grad()
def masked(model: Any, inputs: dict[str, Tensor], kept: list[Tensor]) -> Tensor:
    """Logits when all patches are there but only `kept` (bool `[tiles, P]` a row) can be seen."""
    base = model.model
    states = base.vision_model(
        **{k: inputs[k] for k in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}
    ).last_hidden_state
    states = base.multi_modal_projector(states).reshape(len(kept), -1, base.hidden_size)
    cross, rows = _prepare_cross_attention_mask(
        inputs["cross_attention_mask"], PATCHES, torch.float32
    )
    hidden = torch.stack([~k.flatten() for k in kept])[:, None, None]
    seen = cross.masked_fill(hidden.expand_as(cross), torch.finfo(torch.float32).min)
    out = base.language_model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        cross_attention_states=states,
        cross_attention_mask=torch.where(rows.bool(), seen, cross * 0 + hidden * seen.min()),
        full_text_row_masked_out_mask=rows,
    )
    return model.lm_head(out.last_hidden_state)


def test_retention_one_is_bit_equal() -> None:
    model, inputs = build(), batch()
    with torch.no_grad():
        plain, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
        before = snapshot(model)
        with vtc.compress(model, "uniform", retention=1.0):
            assert torch.equal(model(**inputs).logits, plain)
            assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
        assert snapshot(model) == before
        with vtc.compress(model, "uniform", retention=0.5):
            assert not torch.equal(model.generate(**inputs, **GREEDY), tokens)
        assert snapshot(model) == before
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("method", ["uniform", "random", "globalcom2", "token_correlation"])
def test_equals_masked_patches(method: str) -> None:
    """Rows behind the image, which are the ones that see it."""
    model, inputs = build(), batch()
    with torch.no_grad(), vtc.compress(model, method, retention=0.5) as run:
        ours = model(**inputs).logits
    kept = []
    for image in run.reports[-1].images:
        keep = torch.zeros(4, PATCHES, dtype=torch.bool)
        keep[:, 0] = True
        for tile, row, col in image.kept:
            keep[tile, 1 + row * SIDE + col] = True
        # text before the image looks at everything, padding tiles too, which keep their first rows
        keep[image.frames :, : 1 + image.patches_after // image.frames] = True
        kept.append(keep)
    expected = masked(model, inputs, kept)
    torch.testing.assert_close(ours[:, 2:], expected[:, 2:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_batches(method: str) -> None:
    """A batch gives what its rows give alone; greedy and beams."""
    model, inputs = build(), batch()
    options: dict[str, Any] = {}
    if method == "recoverable":
        options = dict(question="what", text_encoder=text_encoder(32))
    with torch.no_grad(), vtc.compress(model, method, retention=0.5, **options) as run:
        for ask in (GREEDY, dict(GREEDY, num_beams=3)):
            together = model.generate(**inputs, **ask)
            for row in range(2):
                alone = {k: v[row : row + 1] for k, v in inputs.items()}
                assert torch.equal(model.generate(**alone, **ask)[0], together[row])
    assert all(image.patches_after < image.patches_before for image in run.reports[-1].images)


def test_clear_errors() -> None:
    model, inputs = build(), batch()
    with torch.no_grad(), vtc.compress(model, "uniform", retention=0.5):
        with pytest.raises(vtc.VTCError, match="static cache"):
            model.generate(**inputs, **GREEDY, cache_implementation="static")
