"""The attention that positions alone would give, against transformers' own rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import vtc
from tests.families import tiny
from tests.layers import models
from tests.layers.methods import Last
from vtc.layers import Choice
from vtc.methods.sparsevlm import SparseVLM


@dataclass
class Listens(Last):
    """Reads the last token's row of both layers."""

    name: ClassVar[str] = "listens"

    def choose(self, view: Any) -> Choice:
        for which in ("before", "here"):
            heard.append((view.positional(view.seen.asking, which), view.seen))
        return super().choose(view)


heard: list[tuple[Tensor, Any]] = []


@pytest.mark.parametrize("name", ["llava", "mistral"])
def test_ones_under_the_models_rotary_embedding(name: str) -> None:
    model, batch = models.build(name), tiny.inputs("llava", tiny.MIXED)
    lm, mask = model.model.language_model, batch["attention_mask"]
    heard.clear()
    with torch.no_grad(), vtc.compress(model, Listens()):
        model.generate(**batch, max_new_tokens=1, do_sample=False)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    width = lm.layers[0].self_attn.head_dim
    size = mask.shape[1]
    ones = torch.ones(len(mask), 1, size, width)
    rotary = lm.rotary_emb(ones, positions)
    query, key = apply_rotary_pos_emb(ones, ones, *rotary)
    places = torch.arange(size)
    near = places[:, None] >= places
    if name == "mistral":
        near &= places[:, None] - places < 20
    logits = (query @ key.mT)[:, 0] * lm.layers[0].self_attn.scaling
    hidden = ~near | ~mask.bool()[:, None]
    want = logits.masked_fill(hidden, -torch.inf).softmax(-1)[:, -1:]
    assert len(heard) == 2
    for found, _ in heard:
        assert torch.allclose(found, want, atol=1e-6)


def test_version_two_of_sparsevlm() -> None:
    model, batch = models.build("qwen2_5_vl"), tiny.inputs("qwen2_5_vl", tiny.MIXED)
    method = SparseVLM(kept=(8, 4, 2), recycle=False, heads=2, unbias=True)
    with torch.no_grad(), vtc.compress(model, method) as run:
        out = model.generate(**batch, max_new_tokens=3, do_sample=False)
    for row, _ in enumerate(tiny.MIXED):
        alone = tiny.alone("qwen2_5_vl", tiny.MIXED, row)
        with torch.no_grad(), vtc.compress(model, method):
            mine = model.generate(**alone, max_new_tokens=3, do_sample=False)
        assert mine[0, -3:].tolist() == out[row, -3:].tolist()
    cuts = [image.cuts for image in run.reports[0].images]
    assert all(counts[-1][1] <= 2 for counts in cuts) and len(cuts) == 4
