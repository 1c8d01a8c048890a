"""Conversations that continue a cache: a later turn equals the conversation from scratch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import vtc
from tests.families import matrix, tiny

NEW = 4
GREEDY = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "llava_onevision"]


def extended(batch: dict[str, Any], ids: torch.Tensor) -> dict[str, Any]:
    """The batch with more tokens behind it."""
    more = ids.shape[1]
    out = dict(batch, input_ids=torch.cat([batch["input_ids"], ids], 1))
    for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if key in batch:
            out[key] = torch.cat([batch[key], batch[key].new_full((len(ids), more), value)], 1)
    return out


@pytest.mark.parametrize("positions", matrix.POSITIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_text_turn(family: str, positions: str) -> None:
    """The second turn brings text alone."""
    model = matrix.model_of(family)
    first = tiny.inputs(family, [[tiny.A], [tiny.C]])
    rng = torch.Generator().manual_seed(3)
    text = torch.randint(*tiny.WORDS, (2, 5), generator=rng)
    with torch.no_grad(), vtc.compress(model, "uniform", retention=0.5, positions=positions):
        cache = DynamicCache(config=model.config.get_text_config())
        out = model.generate(**first, **GREEDY, past_key_values=cache)
        whole = extended(first, torch.cat([out[:, -NEW:], text], 1))
        texts = {
            k: whole[k] for k in ("input_ids", "attention_mask", "mm_token_type_ids") if k in whole
        }
        second = model.generate(**texts, **GREEDY, past_key_values=cache)
        assert torch.equal(second, model.generate(**whole, **GREEDY))


@pytest.mark.parametrize("positions", matrix.POSITIONS)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3"])
def test_image_turn(family: str, positions: str) -> None:
    """The second turn shows another picture; the third asks about both."""
    model = matrix.model_of(family)
    first, second = (
        tiny.inputs(family, [[shown]], seed) for shown, seed in ((tiny.A, 0), (tiny.C, 1))
    )
    pixels = [key for key in first if key.startswith(("pixel", "image"))]
    tiles = 1 if family == "idefics3" else 0  # it has all tiles of a prompt in one row
    both = {key: torch.cat([first[key], second[key]], tiles) for key in pixels}
    with torch.no_grad(), vtc.compress(model, "uniform", retention=0.5, positions=positions):
        cache = DynamicCache(config=model.config.get_text_config())
        out = model.generate(**first, **GREEDY, past_key_values=cache)
        whole = extended(first, torch.cat([out[:, -NEW:], second["input_ids"]], 1))
        if "mm_token_type_ids" in whole:
            whole["mm_token_type_ids"] = (whole["input_ids"] == tiny.IMAGE).long()
        fresh = {**whole, **{key: second[key] for key in pixels}}
        out = model.generate(**fresh, **GREEDY, past_key_values=cache)
        assert torch.equal(out, model.generate(**{**whole, **both}, **GREEDY))
        whole = extended(whole, torch.cat([out[:, -NEW:], torch.tensor([[5, 6, 7]])], 1))
        texts = {key: value for key, value in whole.items() if key not in pixels}
        out = model.generate(**texts, **GREEDY, past_key_values=cache)
        assert torch.equal(out, model.generate(**{**whole, **both}, **GREEDY))


def test_pictures_of_earlier_turns_given_again() -> None:
    """transformers cannot take them, so neither can a compressed model; the error says what to do."""
    model, first = tiny.build("internvl"), tiny.inputs("internvl", [[tiny.A]])
    with torch.no_grad(), vtc.compress(model, "uniform", retention=0.5) as run:
        cache = DynamicCache(config=model.config.get_text_config())
        out = model.generate(**first, **GREEDY, past_key_values=cache)
        more = extended(first, torch.cat([out[:, -NEW:], torch.tensor([[5, 6, 7]])], 1))
        with pytest.raises(vtc.VTCError, match="pixel_values: .*in the cache"):
            model.generate(**more, **GREEDY, past_key_values=cache)
        run.remove()
        cache = DynamicCache(config=model.config.get_text_config())
        model.generate(**first, **GREEDY, past_key_values=cache)
        with pytest.raises(ValueError, match="do not match"):
            model.generate(**more, **GREEDY, past_key_values=cache)
