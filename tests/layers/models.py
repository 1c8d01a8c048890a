"""Tiny random models deep enough for several cuts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as tf

import vtc
from tests.families import models, tiny

DEPTH = 5


@contextmanager
def deep(**text: Any) -> Iterator[None]:
    """Inside, language models have so many layers."""
    before = dict(models.TEXT)
    models.TEXT.update(num_hidden_layers=DEPTH, **text)
    try:
        yield
    finally:
        models.TEXT.clear()
        models.TEXT.update(before)


def mistral(window: int) -> Any:
    """LLaVA with a language model whose layers all have a sliding window."""
    text = tf.MistralConfig(**models.TEXT, sliding_window=window)
    config = tf.LlavaConfig(text_config=text, vision_config=models.clip(), **models.IDS)
    return tf.LlavaForConditionalGeneration(config)


def gemma3(window: int, *full: int) -> Any:
    """Gemma 3 with sliding windows in all layers but `full`."""
    kinds = ["full_attention" if i in full else "sliding_attention" for i in range(DEPTH)]
    text = tf.Gemma3TextConfig(**models.TEXT, head_dim=12, sliding_window=window, layer_types=kinds)
    config = tf.Gemma3Config(
        text_config=text, vision_config=models.siglip(), mm_tokens_per_image=4, **models.IDS
    )
    model = tf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model


#: name -> family of inputs, what builds it
OTHERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "llava_mistral": ("llava", functools.partial(mistral, 512)),
    "mistral": ("llava", functools.partial(mistral, 20)),
    "gemma3_short": ("gemma3", functools.partial(gemma3, 14, 2)),
    "gemma3_full_first": ("gemma3", functools.partial(gemma3, 14, 0, 3)),
}


def family_of(name: str) -> str:
    """The family whose inputs a model takes."""
    return OTHERS[name][0] if name in OTHERS else name


def build(name: str, attention: str = "sdpa", seed: int = 0) -> Any:
    """A random model of five layers, in eval mode."""
    torch.manual_seed(seed)
    make = OTHERS[name][1] if name in OTHERS else tiny.FAMILIES[name].build
    with deep():
        model = tiny.finished(make(), attention)
    try:
        vtc.apply(model, "none").remove()
    except vtc.VTCError as error:  # an older transformers
        pytest.skip(str(error))
    return model
