"""Mllama: cross-attention over fewer patches equals cross-attention with the others masked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.mllama.modeling_mllama import _prepare_cross_attention_mask

import vtc
from tests.families import matrix, mllama
from tests.families.matrix import METHODS
from tests.hf.tiny import snapshot
from vtc.methods.compares_frames import ComparesFrames
from vtc.plugins.model.signals import GIVEN, WORDS
from vtc.registry import method_class

GREEDY = dict(max_new_tokens=5, do_sample=False)


@torch.no_grad()
def masked(model: Any, inputs: dict[str, Tensor], kept: list[Tensor]) -> Tensor:
    """Logits when all patches are there but only `kept` (bool `[tiles, P]` a row) can be seen."""
    base = model.model
    states = base.vision_model(
        **{k: inputs[k] for k in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}
    ).last_hidden_state
    states = base.multi_modal_projector(states).reshape(len(kept), -1, base.hidden_size)
    cross, rows = _prepare_cross_attention_mask(
        inputs["cross_attention_mask"], mllama.PATCHES, torch.float32
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
    model, inputs = mllama.build(), mllama.inputs()
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
    model, inputs = mllama.build(), mllama.inputs()
    with torch.no_grad(), vtc.compress(model, method, retention=0.5) as run:
        ours = model(**inputs).logits
    kept = []
    for image in run.reports[-1].images:
        keep = torch.zeros(4, mllama.PATCHES, dtype=torch.bool)
        keep[:, 0] = True
        for tile, row, col in image.kept:
            keep[tile, 1 + row * mllama.SIDE + col] = True
        # text before the image looks at everything, padding tiles too, which keep their first rows
        keep[image.frames :, : 1 + image.patches_after // image.frames] = True
        kept.append(keep)
    expected = masked(model, inputs, kept)
    torch.testing.assert_close(ours[:, 2:], expected[:, 2:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str) -> None:
    """Forward and greedy against a tower with patches taken away by hand."""
    if method == "tokenflex":
        with pytest.raises(vtc.VTCError, match="projector: .*'pool' works here"):
            matrix.cell("mllama", False, method, "forward", "left", "original")
        return
    if issubclass(method_class(method), ComparesFrames):  # every tile has a budget of its own here
        with pytest.raises(vtc.VTCError, match="compares the frames of a clip.*by cross-attention"):
            vtc.apply(matrix.model_of("mllama"), method)
        return
    requests = matrix.method_of(method, "mllama", False).requests(has_cls=False).values()
    if any(r.kind in WORDS | GIVEN or r.norm for r in requests):
        with pytest.raises(vtc.VTCError, match="reads images by cross-attention"):
            matrix.cell("mllama", False, method, "forward", "left", "original")
        return
    for mode in ("forward", "greedy"):
        assert matrix.cell("mllama", False, method, mode, "left", "original") == "ok"


@pytest.mark.parametrize("method", ["globalcom2", "pool"])
def test_batches(method: str) -> None:
    """A batch gives what its rows give alone; greedy and beams."""
    model, inputs = mllama.build(), mllama.inputs()
    with torch.no_grad(), vtc.compress(model, method, retention=0.5) as run:
        for ask in (GREEDY, dict(GREEDY, num_beams=3)):
            together = model.generate(**inputs, **ask)
            for row in range(2):
                alone = {k: v[row : row + 1] for k, v in inputs.items()}
                assert torch.equal(model.generate(**alone, **ask)[0], together[row])
    assert all(image.patches_after < image.patches_before for image in run.reports[-1].images)


def test_clear_errors() -> None:
    model, inputs = mllama.build(), mllama.inputs()
    with torch.no_grad(), vtc.compress(model, "uniform", retention=0.5):
        with pytest.raises(vtc.VTCError, match="static cache"):
            model.generate(**inputs, **GREEDY, cache_implementation="static")
