"""The two ways into a model: a forward pre-hook on the model and its own `generate`.

Both encode and compress the images first, drop the surplus placeholders, and call transformers with
the short prompt and the encoded images. The functions take the model as their argument and read their
settings from it, so that a deep copy of a patched model works with its own weights.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from vtc.plugins.hf.hooks import Hook
from vtc.plugins.hf.positions import guard_packed
from vtc.plugins.hf.probe import note_projector
from vtc.plugins.hf.shorten import (
    Turns,
    cached_step,
    generation_setting,
    has_pixels,
    shorten,
)

# Inside our generate: whether its positions have gaps (positions.guard_packed), else None
_GAPS: ContextVar[bool | None] = ContextVar("vtc_gaps", default=None)
# From the pre-hook of a forward to its hook: what the cache will hold
_TURNS: ContextVar[Turns | None] = ContextVar("vtc_turns", default=None)


def hooks(model: nn.Module) -> list[Hook]:
    """Every hook of a patched model."""
    projector = model._vtc.adapter.projector(model.base_model)
    return [
        *([] if projector is None else [Hook(projector, "forward", note_projector)]),
        Hook(model, "forward_pre", pre_hook),
        Hook(model, "forward", post_hook),
    ]


@torch.compiler.disable
def pre_hook(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook: compress when the call brings pixels, otherwise only adapt containers."""
    patch = model._vtc
    kwargs = _by_name(model.forward, args, kwargs)
    _TURNS.set(None)
    if has_pixels(kwargs):
        short = shorten(model, kwargs, generating=False)
        kwargs, patch.compaction = short.kwargs, short.compaction
        _TURNS.set(short.turns)
    elif _GAPS.get():
        guard_packed(kwargs)
    elif _GAPS.get() is None:
        cached_step(patch.positions, kwargs)
    for modality, encoded in (kwargs.get("mm_encoder_outputs") or {}).items():
        features = getattr(encoded, "pooler_output", None)
        if patch.tensors.get(modality) and isinstance(features, (list, tuple)):
            encoded.pooler_output = torch.cat(list(features))[None]
    return (), kwargs


@torch.compiler.disable
def post_hook(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook: note on the cache that a plain forward filled what was dropped from its prompt."""
    turns, cache = _TURNS.get(), getattr(output, "past_key_values", None)
    if turns is not None and cache is not None:
        cache._vtc_turns = turns
    _TURNS.set(None)


def generate(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`model.generate` under compression; returns sequences that start with the user's own prompt."""
    patch = model._vtc
    original = patch.own_generate or MethodType(type(model).generate, model)
    kwargs = _by_name(type(model).generate, (model, *args), kwargs)
    del kwargs["self"]
    if kwargs.get("inputs") is not None and kwargs.get("input_ids") is None:
        kwargs["input_ids"] = kwargs.pop("inputs")
    past = getattr(kwargs.get("past_key_values"), "_vtc_turns", None)
    if not has_pixels(kwargs) and past is None:
        return original(**kwargs)

    prompt = kwargs.get("input_ids") if kwargs.get("inputs_embeds") is None else None
    with torch.no_grad():
        short = shorten(model, kwargs, generating=True)
    patch.compaction = short.compaction
    if short.dropped:
        _shift_lengths(model, short.kwargs, short.dropped)
    token = _GAPS.set(short.compaction is not None and patch.positions != "contiguous")
    try:
        out = original(**short.kwargs)
    finally:
        _GAPS.reset(token)
    if short.compaction is None:
        return out
    cache = getattr(out, "past_key_values", None) or kwargs.get("past_key_values")
    if cache is not None and prompt is not None:
        cache._vtc_turns = short.turns
    return _with_prompt(out, prompt, short.compaction.slot.shape[1])


def _by_name(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(inspect.signature(function).parameters, args, strict=False)), **kwargs}


def _shift_lengths(model: nn.Module, kwargs: dict[str, Any], dropped: int) -> None:
    """`max_length` and `min_length` count the prompt: count the short one."""
    for total, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        length = generation_setting(model, kwargs, total)
        if length and generation_setting(model, kwargs, new) is None:
            kwargs[total] = max(length - dropped, 0)


def _with_prompt(out: Any, prompt: Tensor | None, short: int) -> Any:
    """Put the user's prompt back in front of what was generated."""
    if prompt is None:
        return out
    sequences = out if isinstance(out, Tensor) else out.sequences
    copies = sequences.shape[0] // prompt.shape[0]
    whole = torch.cat(
        [prompt.repeat_interleave(copies, 0).to(sequences.device), sequences[:, short:]], dim=1
    )
    if isinstance(out, Tensor):
        return whole
    out.sequences = whole
    return out
