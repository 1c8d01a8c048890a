"""The two ways into a model: a forward pre-hook on the model and its own `generate`.

Both encode and compress the images first, drop the surplus placeholders, and call transformers with
the short prompt and the encoded images. The functions take the model as their argument and read their
settings from it, so that a deep copy of a patched model works with its own weights.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.plugins.hf.compaction import Compaction, build_compaction, image_runs
from vtc.plugins.hf.encode import Encoded, encode
from vtc.plugins.hf.positions import default_positions, guard_packed
from vtc.plugins.hf.question import first_line, last_question
from vtc.report import Report

# True inside a generate whose positions have gaps, see positions.guard_packed
_GAPS: ContextVar[bool] = ContextVar("vtc_gaps", default=False)

#: fill value of every text-side argument of shape [B, L] where a short row is padded
_TEXT_SIDE = {"labels": -100, "token_type_ids": 0, "mm_token_type_ids": 0}


@torch.compiler.disable
def pre_hook(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook: compress when the call brings pixels, otherwise only adapt containers."""
    patch = model._vtc
    kwargs = _by_name(model.forward, args, kwargs)
    if _has_pixels(patch, kwargs):
        kwargs, _, _ = _shorten(model, kwargs, generating=False)
    elif _GAPS.get():
        guard_packed(kwargs)
    encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
    if encoded is not None and not patch.adapter.wants_list:
        features = encoded.pooler_output
        if isinstance(features, (list, tuple)):
            encoded.pooler_output = torch.cat(list(features))[None]
    return (), kwargs


def generate(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`model.generate` under compression; returns sequences that start with the user's own prompt."""
    patch = model._vtc
    original = patch.own_generate or MethodType(type(model).generate, model)
    kwargs = _by_name(type(model).generate, (model, *args), kwargs)
    del kwargs["self"]
    if kwargs.get("inputs") is not None and kwargs.get("input_ids") is None:
        kwargs["input_ids"] = kwargs.pop("inputs")
    past = getattr(kwargs.get("past_key_values"), "_vtc_compaction", None)
    if not _has_pixels(patch, kwargs) and past is None:
        return original(**kwargs)

    prompt = kwargs.get("input_ids") if kwargs.get("inputs_embeds") is None else None
    with torch.no_grad():
        short, compaction, dropped = _shorten(model, kwargs, generating=True)
    if dropped:
        _shift_lengths(model, short, dropped)
    token = _GAPS.set(compaction is not None and patch.positions == "original")
    try:
        out = original(**short)
    finally:
        _GAPS.reset(token)
    if compaction is None:
        return out
    cache = getattr(out, "past_key_values", None) or kwargs.get("past_key_values")
    if cache is not None and prompt is not None:
        cache._vtc_compaction = (compaction, prompt.shape[1])
    return _with_prompt(out, prompt, compaction.slot.shape[1])


def _by_name(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(inspect.signature(function).parameters, args, strict=False)), **kwargs}


def _has_pixels(patch: Any, kwargs: dict[str, Any]) -> bool:
    return any(kwargs.get(key) is not None for key in patch.adapter.pixel_keys)


def _shorten(
    model: nn.Module, kwargs: dict[str, Any], generating: bool
) -> tuple[dict[str, Any], Compaction | None, int]:
    """The arguments of the short call, the compaction (None for an identity), columns dropped."""
    patch, base = model._vtc, model.base_model
    ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    if ids is None and embeds is None:
        raise VTCError("input_ids: got None beside pixels; give input_ids or inputs_embeds")
    mask = _attention_mask(model, kwargs, generating)
    token = patch.adapter.image_token_id(model.config)
    if ids is not None:
        placeholder = ids == token
    else:
        row = model.get_input_embeddings()(torch.tensor(token, device=embeds.device))
        placeholder = (embeds == row).all(-1)
    batch, length = placeholder.shape
    real = torch.ones_like(placeholder) if mask is None else mask.bool()
    if real.shape != placeholder.shape:
        raise VTCError(
            f"attention_mask: got shape {tuple(real.shape)}, expected {(batch, length)}; pass the "
            "whole conversation when a cache is continued"
        )

    past, seen = getattr(kwargs.get("past_key_values"), "_vtc_compaction", (None, 0))
    fresh = placeholder.clone()
    fresh[:, :seen] = False  # images of earlier turns are in the cache already

    encoded, runs = None, []
    if _has_pixels(patch, kwargs):

        def questions(lengths: list[int]) -> list[str]:
            return _questions(patch, ids, real, image_runs(fresh, lengths), length)

        encoded = encode(patch, base, kwargs, questions)
        runs = image_runs(fresh, encoded.lengths)
        _report(patch, encoded, runs, length)

    new = {k: v for k, v in kwargs.items() if k not in patch.adapter.pixel_keys}
    if encoded is not None:
        new["mm_encoder_outputs"] = {"image": encoded.output}
        if encoded.identity and past is None:
            return new, None, 0

    # On the user's side. Rows that needed no padding end together, so that logits[:, -1] are the next
    # token's, or start together under labels, so that none is predicted from padding.
    if bool(real.all()):
        left = generating or kwargs.get("labels") is None
    else:
        left = generating or not bool(real[:, 0].all())
    anchors = encoded.anchors if encoded is not None else []
    compaction = build_compaction(
        real[:, seen:], fresh[:, seen:], [_local(run, length, seen) for run in runs], anchors, left
    )
    if past is not None:
        compaction = _continued(past, compaction, seen)

    if ids is not None:
        new["input_ids"] = compaction.gather(ids, _pad_id(model))
    if embeds is not None:
        new["inputs_embeds"] = compaction.gather(embeds)
    for key, fill in _TEXT_SIDE.items():
        value = new.get(key)
        if isinstance(value, Tensor) and value.shape[:2] == (batch, length):
            new[key] = compaction.gather(value, fill)
    ragged = not bool(compaction.valid.all())
    if patch.positions == "original":
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = default_positions(real)
        new["position_ids"] = compaction.positions(positions.expand(batch, length))
    else:
        new.pop("position_ids", None)
    # Gaps need an explicit mask (positions.guard_packed); rows of different length need one anyway
    if mask is not None or ragged or patch.positions == "original":
        new["attention_mask"] = compaction.valid.to(torch.long if mask is None else mask.dtype)
    return new, compaction, length - compaction.slot.shape[1]


def _local(run: Tensor, length: int, seen: int) -> Tensor:
    """Flat indices of the whole rows as flat indices of the columns behind `seen`."""
    return (run // length) * (length - seen) + run % length - seen


def _continued(past: Compaction, tail: Compaction, seen: int) -> Compaction:
    """The compaction of a conversation: what the cache holds, then the new part."""
    return Compaction(
        torch.cat([past.slot, tail.slot + seen], 1),
        torch.cat([past.position, tail.position + seen], 1),
        torch.cat([past.valid, tail.valid], 1),
    )


def _attention_mask(model: nn.Module, kwargs: dict[str, Any], generating: bool) -> Tensor | None:
    mask = kwargs.get("attention_mask")
    if mask is not None:
        if mask.dim() != 2:
            raise VTCError(
                f"attention_mask: got {mask.dim()} dimensions, allowed is [batch, length] while a model "
                "is compressed"
            )
        return mask
    ids = kwargs.get("input_ids")
    if not generating or ids is None:
        return None
    # generate infers padding from the ids when it gets no mask; so must we
    config = kwargs.get("generation_config") or model.generation_config
    pad, end = config.pad_token_id, config.eos_token_id
    ends = end if isinstance(end, (list, tuple)) else [end]
    if pad is None or pad in ends or not bool((ids == pad).any()):
        return None
    return (ids != pad).long()


def _pad_id(model: nn.Module) -> int:
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        pad = getattr(config, "pad_token_id", None)
        if pad is not None and pad >= 0:
            return pad
    return 0


def _questions(
    patch: Any, ids: Tensor | None, real: Tensor, runs: list[Tensor], length: int
) -> list[str]:
    """The text that each image is asked about."""
    fixed = getattr(patch.method, "question", None)
    if fixed is not None:
        return [fixed] * len(runs)
    if ids is None:
        raise VTCError("inputs_embeds: a text-guided method cannot read them; pass question=...")
    read = first_line if getattr(patch.method, "text_source", "") == "official" else last_question
    texts = {}
    for row in {int(run[0]) // length for run in runs}:
        texts[row] = read(patch.tokenizer.decode(ids[row][real[row]], skip_special_tokens=False))
    return [texts[int(run[0]) // length] for run in runs]


def _report(patch: Any, encoded: Encoded, runs: list[Tensor], length: int) -> None:
    images = [
        replace(report, sample=int(run[0]) // length)
        for report, run in zip(encoded.reports, runs, strict=True)
    ]
    patch.reports.append(
        Report(
            images=images,
            method=patch.method.name,
            settings=patch.method.settings(),
            positions=patch.positions,
            seconds=encoded.seconds,
            notes=list(patch.notes),
        )
    )
    del patch.reports[:-1000]  # a long-running server must not grow for ever


def _shift_lengths(model: nn.Module, kwargs: dict[str, Any], dropped: int) -> None:
    """`max_length` and `min_length` count the prompt: count the short one."""
    configs = [kwargs.get("generation_config"), model.generation_config]

    def setting(name: str) -> Any:
        values = (kwargs.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in values if value is not None), None)

    for total, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if setting(total) and setting(new) is None:
            kwargs[total] = max(setting(total) - dropped, 0)


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
