"""The hooks of a language model and its layers.

The state of a call travels as one keyword through the language model's own arguments. So threads do not
meet, and a layer that a checkpoint runs again has it too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.plugins.hf import cache
from vtc.plugins.hf.stages.layers import call
from vtc.plugins.hf.stages.layers.deepstack import taken
from vtc.plugins.hf.stages.layers.finish import finish
from vtc.plugins.hf.stages.layers.masks import replace_bias, replace_mask
from vtc.plugins.hf.typing import Model

KEY = "vtc_inside"


def enter(lm: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of the language model: the state of the call, if it has one."""
    notes = getattr(cache.given(kwargs), "_vtc_inside", None)
    if notes is not None and notes.later is not None:
        return args, {**kwargs, KEY: notes.later}
    embeds = kwargs.get("inputs_embeds")
    if notes is None and embeds is not None and embeds.shape[1] == 1:
        return None
    return _bring(lm, args, kwargs)


def leave(lm: Model, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of the language model: what it returns is long again."""
    state = kwargs.get(KEY)
    if state is None:
        return None
    if state.prompt:
        return _finish(state, kwargs, output)
    return None


def settle(module: Model, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of the model and of its language model, even when they fail: no call is under way."""
    notes = cache.inside(cache.given(kwargs))
    if notes is not None:
        notes.later, notes.entered = None, False


def before_layer(layer: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of a decoder layer."""
    if KEY not in kwargs:
        return None
    state = kwargs[KEY]
    rest = {key: value for key, value in kwargs.items() if key != KEY}
    number = layer.self_attn.layer_idx
    if state.prompt:
        return _at(state, number, layer, args, rest)
    if number >= state.first:
        nth = number - state.first
        replace_mask(rest, state.masks[nth])
        replace_bias(rest, state.biases[nth])
    return args, rest


@torch.compiler.disable
def _at(
    state: Any, number: int, layer: Model, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return state.at(number, layer, args, kwargs)


@torch.compiler.disable
def _finish(state: Any, kwargs: dict[str, Any], output: Any) -> Any:
    return finish(state, kwargs, output)


@torch.compiler.disable
def _bring(lm: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    prompt, embeds = call.take(), kwargs.get("inputs_embeds")
    if prompt is not None and prompt.lm is lm and embeds is not None:
        if embeds.shape[:2] == prompt.shown.valid.shape:
            kwargs = dict(kwargs)
            prompt.deepstack = taken(kwargs, min(prompt.budgets))
            return args, {**kwargs, "vtc_inside": prompt}
    held_in = cache.given(kwargs)
    notes = call.known(held_in, cache.name(lm))
    inputs = embeds if embeds is not None else kwargs.get("input_ids")
    if notes is None or inputs is None:
        return None
    # somebody called the inner model: its columns are real as far as their mask says
    batch, fresh = inputs.shape[:2]
    mask = kwargs.get("attention_mask")
    valid = torch.ones(batch, fresh, dtype=torch.bool, device=inputs.device)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        valid = mask[:, -fresh:].bool()
    notes.entered = True
    notes.fit(batch, cache.name(lm))
    return args, {**kwargs, KEY: call.late(lm, lm, notes, held_in, valid, True)}
