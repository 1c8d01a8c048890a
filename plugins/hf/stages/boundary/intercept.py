"""The two ways into a model: a forward pre-hook on the model and its own `generate`.

Both encode and compress the images first, drop the surplus placeholders, and call transformers with
the short prompt and the encoded images. The functions take the model as their argument and read their
settings from it, so that a deep copy of a patched model works with its own weights.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.plugins.hf import arguments, cache, scopes
from vtc.plugins.hf.adapters.base import Adapter
from vtc.plugins.hf.attach import running
from vtc.plugins.hf.cache import Held
from vtc.plugins.hf.scopes import Block
from vtc.plugins.hf.stages.boundary import packed, proportional
from vtc.plugins.hf.stages.boundary.logits import pick
from vtc.plugins.hf.stages.boundary.prompt import generation_setting, has_pixels
from vtc.plugins.hf.stages.boundary.shorten import continued_step, shorten
from vtc.plugins.hf.stages.layers import call as inside
from vtc.plugins.hf.stages.layers.shown import Shown
from vtc.plugins.hf.typing import Model


@dataclass
class Generating:
    """A short prompt under way in our `generate`.

    Attributes:
        gaps: whether its positions have gaps.
        held: the prompt, None when nothing was dropped.
        front: tokens that somebody (PEFT) has put in front of it.
        shown: what it shows, for a method inside the language model; None for nothing.
        mask: of the conversation `[B, L]`, None where there is none.
        bias: of the prompt, see `Short`.
        start: tokens in the cache in front of it, None before the first call.
    """

    gaps: bool
    held: Held | None
    front: int = 0
    shown: Shown | None = None
    mask: Tensor | None = None
    bias: Tensor | None = None
    start: int | None = None

    def begins(self, held_in: Any) -> Tensor | None:
        """`bias` for a call that begins the prompt; later chunks of it find theirs on the cache."""
        if self.bias is None:
            return None
        past = cache.length(held_in)
        self.start = past if self.start is None else self.start
        return self.bias if past == self.start else None


@dataclass
class Pending:
    """What the hook behind a forward has to do.

    Attributes:
        held: to be noted on the cache.
        wanted: the logits that each row wants, see `logits.short_places`.
        labelled: whether there is a loss in front of the logits.
        bias: to be noted on the cache.
    """

    held: Held | None = None
    wanted: Tensor | None = None
    labelled: bool = False
    bias: Tensor | None = None


# Inside our generate
_GENERATING: ContextVar[Generating | None] = ContextVar("vtc_generating", default=None)
# From the pre-hook of a forward to its hook
_PENDING: ContextVar[Pending | None] = ContextVar("vtc_pending", default=None)


@torch.compiler.disable
def pre_hook(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook: compress when the call brings pixels, otherwise only adapt containers."""
    _PENDING.set(None)
    proportional.settle()
    scope = scopes.current(model)
    if scope is None or scope.patch is None or not scope.patch.at_boundary:
        return None
    patch = scope.patch
    kwargs = cache.renamed(model, arguments.by_name(model, args, kwargs))
    generating, shown, fresh = _GENERATING.get(), None, None
    pending = Pending()
    if has_pixels(kwargs):
        with running(model, scope):
            short = shorten(model, scope, kwargs, generating=False)
        kwargs, shown, fresh = short.kwargs, short.shown, short.bias
        patch.note_compaction(scope.call, short.compaction)
        pending = Pending(short.held, short.wanted, kwargs.get("labels") is not None)
        _PENDING.set(pending)
    elif generating is not None:
        # transformers hands on what was encoded with the prompt alone, later an empty dictionary
        if kwargs.get("mm_encoder_outputs"):
            shown, fresh = generating.shown, generating.begins(cache.given(kwargs))
        if generating.gaps:
            kwargs.update(_generated_positions(model, patch.adapter, generating, kwargs))
            kwargs.update(packed.one_sample(model, kwargs))
    else:
        kwargs.update(continued_step(model, patch, kwargs))
    for modality, encoded in (kwargs.get("mm_encoder_outputs") or {}).items():
        features = getattr(encoded, "pooler_output", None)
        if patch.tensors.get(modality) and isinstance(features, (list, tuple)):
            encoded.pooler_output = torch.cat(list(features))[None]
    bias = proportional.enter(model, kwargs, fresh)
    if bias is not None and fresh is not None:
        pending.bias = bias.columns
        _PENDING.set(pending)
    if patch.inside is not None:
        mask = None if generating is None else generating.mask
        inside.enter(model, patch, kwargs, shown, generating is not None, mask, bias)
    return (), kwargs


@torch.compiler.disable
def post_hook(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook: note on the cache what was dropped from its prompt, and pick the logits that the
    caller asked for."""
    pending = _PENDING.get()
    _PENDING.set(None)
    if pending is None:
        if _GENERATING.get() is None:
            held_in = cache.given(kwargs)
            known = cache.held(held_in)
            if known is not None and known.broken is None:
                known.length = cache.length(held_in)
        return None
    held_in = cache.found(output, kwargs)
    if pending.held is not None and held_in is not None:
        cache.note(held_in, pending.held)
    if pending.bias is not None and held_in is not None:
        cache.note_bias(held_in, pending.bias)
    if pending.wanted is not None:
        return pick(output, pending.wanted, pending.labelled)
    return None


def generate(model: Model, *args: Any, fetched: Block | None = None, **kwargs: Any) -> Any:
    """`model.generate` under compression; returns sequences that start with the user's own prompt.

    Args:
        fetched: the one block that was open when this was read from the model, None for several.
    """
    state = scopes.state_of(model)
    own = None if state is None else state.own_generate
    original = own or MethodType(type(model).generate, model)
    scope = scopes.current(model, fetched)
    with running(model, scope):
        if scope is None or scope.patch is None or not scope.patch.at_boundary:
            return original(*args, **kwargs)
        names = list(arguments.parameters_of(type(model).generate))[1:]
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        return _generate(model, scope, original, cache.renamed(model, kwargs))


def _generate(model: Model, scope: scopes.Scope, original: Any, kwargs: dict[str, Any]) -> Any:
    patch = scope.patch
    assert patch is not None
    if kwargs.get("inputs") is not None and kwargs.get("input_ids") is None:
        kwargs["input_ids"] = kwargs.pop("inputs")
    if patch.inside is not None:
        _refuse_chunks(model, kwargs)
    if not has_pixels(kwargs) and cache.held(cache.given(kwargs)) is None:
        if cache.inside(cache.given(kwargs)) is None:
            return original(**kwargs)
        mask = kwargs.get("attention_mask")
        token = _GENERATING.set(Generating(False, None, mask=mask))
        try:
            return original(**kwargs)
        finally:
            _GENERATING.reset(token)

    prompt = kwargs.get("input_ids") if kwargs.get("inputs_embeds") is None else None
    with torch.no_grad():
        short = shorten(model, scope, kwargs, generating=True)
    patch.note_compaction(scope.call, short.compaction)
    if short.dropped:
        _shift_lengths(model, short.kwargs, short.dropped)
    gaps = short.held is not None and patch.positions != "contiguous"
    mask = short.kwargs.get("attention_mask")
    token = _GENERATING.set(
        Generating(gaps, short.held, shown=short.shown, mask=mask, bias=short.bias)
    )
    try:
        out = original(**short.kwargs)
    finally:
        _GENERATING.reset(token)
    if short.held is None or short.compaction is None:
        return out
    held_in = cache.found(out, kwargs)
    if held_in is not None and prompt is not None:
        cache.note(held_in, short.held)
    return _with_prompt(out, prompt, short.compaction.slot.shape[1])


def _refuse_chunks(model: Model, kwargs: dict[str, Any]) -> None:
    size = generation_setting(model, kwargs, "prefill_chunk_size")
    if size is not None:
        raise VTCError(
            f"prefill_chunk_size: got {size}, but inside the language model tokens are chosen of the "
            "whole prompt, before its last part is read; allowed is None"
        )


def _generated_positions(
    model: Model, adapter: Adapter, generating: Generating, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Positions of the short prompt, or of a step behind it, where generate's own were thrown away.

    PEFT's prefix and prompt tuning put virtual tokens in front of the prompt, say that positions are not
    supported, and leave transformers to count, which would close the gaps.
    """
    held = generating.held
    inputs = kwargs.get("input_ids")
    inputs = inputs if inputs is not None else kwargs.get("inputs_embeds")
    if kwargs.get("position_ids") is not None or held is None or inputs is None:
        return {}
    fresh = inputs.shape[1]
    whole = cache.length(cache.given(kwargs)) + fresh
    if kwargs.get("mm_encoder_outputs") is not None:
        generating.front = whole - held.places
    front, times = generating.front, len(inputs) // len(held.visual)
    if front < 0 or hasattr(model.base_model, "get_rope_index"):
        return {}
    own, after = (x[0].repeat_interleave(times, 0) for x in (held.own, held.after))
    virtual = torch.arange(front, device=own.device).expand(len(own), -1)
    behind = torch.arange(max(whole - front - held.places, 0), device=own.device)
    every = torch.cat([virtual, front + own, front + after[:, None] + behind], 1)
    return {"position_ids": every[:, -fresh:] + adapter.first_position}


def _shift_lengths(model: Model, kwargs: dict[str, Any], dropped: int) -> None:
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
