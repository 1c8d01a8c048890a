"""Every way to generate, against the bare model whose deep layers hide what was dropped."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers

import vtc
from tests.families import tiny
from tests.layers import models
from tests.layers.hand import Hand
from tests.layers.masked import Gone, gone_by_hand, hiding
from tests.layers.methods import Last, Steps

NEW = 6
METHODS: dict[str, Any] = {"last": Last(layer=1), "steps": Steps()}
#: rows with one image each, where transformers 5.18 gives copies of rows the wrong ones of several
ROWS: tiny.Rows = [[tiny.A], [], [tiny.C]]
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": dict(do_sample=True, top_k=8),
    "two returned": dict(do_sample=True, num_return_sequences=2),
    "beams": dict(num_beams=3),
    "beams, two returned": dict(num_beams=3, num_return_sequences=2),
    "beam sampling": dict(num_beams=3, do_sample=True),
    "static": dict(cache_implementation="static"),
    "static, beams": dict(cache_implementation="static", num_beams=3),
    "penalties": dict(repetition_penalty=1.3, no_repeat_ngram_size=2),
    "no cache": dict(use_cache=False),
}
ALONE: dict[str, dict[str, Any]] = {
    "prompt lookup": dict(prompt_lookup_num_tokens=2),
    "assistant": dict(num_assistant_tokens=3),
}


@functools.lru_cache(maxsize=4)
def case(name: str, method: str, alone: bool) -> tuple[Any, dict[str, Any], Gone]:
    """A model, a batch, and what its layers hide."""
    model, family = models.build(name), models.family_of(name)
    rows = ROWS[:1] if alone else ROWS
    hands = [
        Hand(model, name, tiny.alone(family, rows, row), rows[row], METHODS[method])
        for row in range(len(rows))
    ]
    batch = tiny.inputs(family, rows)
    shown = batch["attention_mask"].bool()
    return model, batch, gone_by_hand([hand.columns for hand in hands], shown, models.DEPTH)


def both(name: str, method: str, ask: dict[str, Any], alone: bool = False) -> None:
    model, batch, gone = case(name, method, alone)
    ask = dict(max_new_tokens=NEW, do_sample=False) | ask

    def run() -> Any:
        torch.manual_seed(3)
        with torch.no_grad():
            return model.generate(**batch, **ask)

    with hiding(model, gone):
        want = run()
    with vtc.compress(model, METHODS[method]):
        got = run()
    assert torch.equal(got, want)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_modes(name: str, method: str, mode: str) -> None:
    both(name, method, MODES[mode])


@pytest.mark.parametrize("mode", ["greedy", "beams", "static"])
@pytest.mark.parametrize("name", ["gemma3", "qwen3_vl"])
def test_other_language_models(name: str, mode: str) -> None:
    both(name, "steps", MODES[mode])


def test_what_is_dropped_is_missed() -> None:
    """The bare model says something else, so that the comparisons above prove something."""
    for name in ("llava", "qwen2_5_vl"):
        for method in METHODS:
            model, batch, gone = case(name, method, False)
            with torch.no_grad():
                bare = model(**batch).logits[:, -1]
                with hiding(model, gone):
                    assert not torch.allclose(model(**batch).logits[:, -1], bare, atol=0.1)


@pytest.mark.parametrize("mode", ALONE)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_assisted(name: str, mode: str) -> None:
    """Drafts come along with the prompt in the first call: the question's last token is in front."""
    ask = dict(ALONE[mode])
    if mode == "assistant":
        if name != "llava":
            pytest.skip("transformers hands M-RoPE's token types to an assistant that has none")
        model = case(name, "last", True)[0]
        small = transformers.LlamaConfig(**{**models.models.TEXT, "num_hidden_layers": 1})
        torch.manual_seed(5)
        helper = transformers.LlamaForCausalLM(small).eval()
        helper.generation_config = model.generation_config
        ask["assistant_model"] = helper
    both(name, "last", ask, alone=True)
