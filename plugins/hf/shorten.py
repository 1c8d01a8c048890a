"""From the arguments of a long call to those of the short one: the heart of the plug-in."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.plugins.hf.adapters.base import PIXELS
from vtc.plugins.hf.compaction import (
    Compaction,
    build_compaction,
    image_runs,
    reading_order,
    rows_of,
)
from vtc.plugins.hf.encode import encode
from vtc.plugins.hf.positions import prompt_positions, short_positions
from vtc.plugins.hf.question import asked

#: fill value of every text-side argument of shape [B, L] where a short row is padded
_TEXT_SIDE = {"labels": -100, "token_type_ids": 0, "mm_token_type_ids": 0}


class Turns(NamedTuple):
    """What a KV cache holds of a conversation; kept on the cache.

    Attributes:
        compaction: of the conversation so far.
        seen: its length before compression.
        positions: `[R, B, seen]`, its positions before compression.
        after: int64 `[B]`, the position that follows its short form.
    """

    compaction: Compaction
    seen: int
    positions: Tensor
    after: Tensor


@dataclass
class Short:
    """A shortened call.

    Attributes:
        kwargs: its arguments.
        compaction: how it reads from the long one, None when nothing was dropped.
        dropped: columns that are gone.
        turns: what a cache holds behind the call, None when nothing was dropped.
    """

    kwargs: dict[str, Any]
    compaction: Compaction | None = None
    dropped: int = 0
    turns: Turns | None = None


def has_pixels(kwargs: dict[str, Any]) -> bool:
    """Whether a call brings images or clips."""
    return any(kwargs.get(key) is not None for key in PIXELS.values())


def shorten(model: nn.Module, kwargs: dict[str, Any], generating: bool) -> Short:
    """Encode and compress what the call shows, and drop the placeholders of what is gone.

    Args:
        model: a patched model.
        kwargs: the call's arguments, by name.
        generating: whether the call is a `generate` and not a plain forward.
    """
    patch, base = model._vtc, model.base_model
    ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
    if ids is None and embeds is None:
        raise VTCError("input_ids: got None beside pixels; give input_ids or inputs_embeds")
    mask = _attention_mask(model, kwargs, generating)
    placeholders = _placeholders(model, ids, embeds)
    batch, length = (ids if ids is not None else embeds).shape[:2]
    device = (ids if ids is not None else embeds).device
    real = torch.ones(batch, length, dtype=torch.bool, device=device)
    real = real if mask is None else mask.bool()
    if real.shape != (batch, length):
        raise VTCError(
            f"attention_mask: got shape {tuple(real.shape)}, expected {(batch, length)}; pass the "
            "whole conversation when a cache is continued"
        )

    past = getattr(kwargs.get("past_key_values"), "_vtc_turns", None)
    seen = 0 if past is None else past.seen
    for modality, placeholder in placeholders.items():
        placeholder[:, :seen] = False  # images of earlier turns are in the cache already
        key = PIXELS[modality]
        if seen and kwargs.get(key) is not None and not bool(placeholder.any()):
            # transformers refuses them as well: its features and placeholders do not match
            raise VTCError(
                f"{key}: the new part of the prompt has no placeholders for them; what earlier turns "
                "showed is in the cache, so pass what the new turn shows alone, or None"
            )

    # one look at the prompts, before the encoders have work queued
    names = list(placeholders)
    read = torch.stack([real, *placeholders.values()]).cpu()
    host, shown = read[0], dict(zip(names, read[1:].unbind(), strict=True))

    def questions(modality: str, lengths: list[int]) -> list[str]:
        words = real & ~torch.stack(list(placeholders.values())).any(0)
        return _questions(patch, ids, words, image_runs(shown[modality], lengths), length)

    done = encode(patch, base, kwargs, ids, placeholders, questions)
    runs = [run for e in done for run in image_runs(shown[e.modality], e.lengths)]
    if done:
        reports, rows = [report for e in done for report in e.reports], rows_of(runs, length)
        order = reading_order(runs)
        patch.add_report(
            [reports[i] for i in order], [rows[i] for i in order], sum(e.seconds for e in done)
        )

    new = {k: v for k, v in kwargs.items() if k not in PIXELS.values()}
    if done:
        new["mm_encoder_outputs"] = {e.modality: e.output for e in done}
        if all(e.identity for e in done) and past is None:
            return Short(new)
    for e in done if generating else ():
        _join_rows(e.output, rows_of(image_runs(shown[e.modality], e.lengths), length))

    # On the user's side. Rows that needed no padding end together, so that logits[:, -1] are the next
    # token's, or start together under labels, so that none is predicted from padding.
    if all(host.all(1).tolist()):
        left = generating or kwargs.get("labels") is None
    else:
        left = generating or not all(host[:, 0].tolist())
    visual = torch.zeros_like(host)
    for e in done:
        visual |= shown[e.modality]
    anchors = [anchor for e in done for anchor in e.anchors]
    local = [_local(run, length, seen) for run in runs]
    compaction = build_compaction(host[:, seen:], visual[:, seen:], local, anchors, left).to(device)
    if past is not None:
        compaction = _continued(past.compaction, compaction, seen)

    if ids is not None:
        new["input_ids"] = compaction.gather(ids, _pad_id(model, kwargs))
    if embeds is not None:
        new["inputs_embeds"] = compaction.gather(embeds)
    for key, fill in _TEXT_SIDE.items():
        value = new.get(key)
        if isinstance(value, Tensor) and value.shape[:2] == (batch, length):
            new[key] = compaction.gather(value, fill)

    first = 0 if generating else patch.adapter.first_position
    positions = prompt_positions(base, kwargs, real, past, first)
    new.pop("position_ids", None)
    explicit = short_positions(patch.positions, positions, compaction)
    if explicit is not None:
        new["position_ids"] = explicit
        _tell_deltas(base, explicit, compaction)
    # Gaps need an explicit mask (positions.guard_packed); rows of different length need one anyway
    if mask is not None or compaction.ragged or patch.positions != "contiguous":
        new["attention_mask"] = compaction.valid.to(torch.long if mask is None else mask.dtype)
    after = compaction.valid.sum(1) if explicit is None else _after(explicit, compaction.valid)
    turns = Turns(compaction, length, positions, after)
    return Short(new, compaction, length - compaction.slot.shape[1], turns)


def cached_step(policy: str, kwargs: dict[str, Any]) -> None:
    """Arguments of a forward that goes on behind a compressed prompt in a cache, in short terms.

    A caller with a decoding loop of its own lets the mask of the long prompt grow and leaves the
    positions to transformers, which counts what is in the cache. A mask that fits the cache is left
    as it is.

    Args:
        policy: one of `positions.POLICIES`.
        kwargs: the call's arguments, by name; changed in place.
    """
    cache = kwargs.get("past_key_values")
    past = getattr(cache, "_vtc_turns", None)
    ids = kwargs.get("input_ids")
    inputs = ids if ids is not None else kwargs.get("inputs_embeds")
    if past is None or inputs is None:
        return
    valid, fresh = past.compaction.valid, inputs.shape[1]
    behind = int(cache.get_seq_length()) + fresh - valid.shape[1]
    mask = kwargs.get("attention_mask")
    if mask is None:
        tail = torch.ones(len(valid), behind, dtype=torch.long, device=valid.device)
    elif mask.dim() == 2 and mask.shape[1] == past.seen + behind:
        tail = mask[:, past.seen :]
    else:
        return
    kwargs["attention_mask"] = torch.cat([valid.to(tail.dtype), tail], 1)
    if kwargs.get("position_ids") is None and len(past.positions) == 1 and policy != "contiguous":
        count = tail.long().cumsum(1) - 1
        kwargs["position_ids"] = (past.after[:, None] + count)[:, -fresh:]


def _join_rows(output: Any, rows: list[int]) -> None:
    """One entry a prompt in place of one an image, `rows` being the prompt of each image.

    For beams, transformers 5.18 repeats the images of a prompt one by one, in the wrong order.
    """
    sizes = [len(list(group)) for _, group in groupby(rows)]

    def joined(parts: Any) -> list[Tensor]:
        left = iter(parts)
        return [torch.cat([next(left) for _ in range(size)]) for size in sizes]

    output.pooler_output = joined(output.pooler_output)
    levels = getattr(output, "deepstack_features", None)
    if levels is not None:
        output.deepstack_features = [joined(level) for level in levels]


def _after(positions: Tensor, valid: Tensor) -> Tensor:
    """The position that follows each row's last: `[B, S]` or `[R, B, S]` to `[B]`."""
    last = positions if positions.dim() == 2 else positions[1:].amax(0)
    return last.masked_fill(~valid, -1).amax(1) + 1


def _placeholders(model: nn.Module, ids: Tensor | None, embeds: Tensor | None) -> dict[str, Tensor]:
    """Modality -> bool `[B, L]`, where the prompts hold its placeholders."""
    out = {}
    for modality in PIXELS:
        token = model._vtc.adapter.token_id(model.config, modality)
        if token is None:
            continue
        if ids is not None:
            out[modality] = ids == token
        else:
            row = model.get_input_embeddings()(torch.tensor(token, device=embeds.device))
            out[modality] = (embeds == row).all(-1)
    return out


def _tell_deltas(base: nn.Module, positions: Tensor, compaction: Compaction) -> None:
    """Where M-RoPE goes on in a later forward that brings no positions of its own."""
    if positions.dim() == 3 and hasattr(base, "rope_deltas"):
        after = _after(positions, compaction.valid)
        base.rope_deltas = (after - compaction.valid.sum(1))[:, None]


def _local(run: Tensor, length: int, seen: int) -> Tensor:
    """Flat indices of the whole rows as flat indices of the columns behind `seen`."""
    return (run // length) * (length - seen) + run % length - seen


def _continued(past: Compaction, tail: Compaction, seen: int) -> Compaction:
    """The compaction of a conversation: what the cache holds, then the new part."""
    return Compaction(
        torch.cat([past.slot, tail.slot + seen], 1),
        torch.cat([past.position, tail.position + seen], 1),
        torch.cat([past.valid, tail.valid], 1),
        past.ragged or tail.ragged,
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
    pad, end = (generation_setting(model, kwargs, f"{which}_token_id") for which in ("pad", "eos"))
    ends = end if isinstance(end, (list, tuple)) else [end]
    if pad is None or pad in ends or not bool((ids == pad).any()):
        return None
    return (ids != pad).long()


def generation_setting(model: nn.Module, kwargs: dict[str, Any], name: str) -> Any:
    """A setting of `generate`: a keyword, then the caller's config, then the model's; None if unset."""
    configs = kwargs.get("generation_config"), getattr(model, "generation_config", None)
    values = (kwargs.get(name), *(getattr(config, name, None) for config in configs))
    return next((value for value in values if value is not None), None)


def _pad_id(model: nn.Module, kwargs: dict[str, Any]) -> int:
    own = getattr(model.config.get_text_config(), "pad_token_id", None)
    pads = generation_setting(model, kwargs, "pad_token_id"), own
    return next((pad for pad in pads if pad is not None and pad >= 0), 0)


def _questions(
    patch: Any, ids: Tensor | None, words: Tensor, runs: list[Tensor], length: int
) -> list[str]:
    """The text that each image is asked about, read where `words [B, L]` is True."""
    rows = rows_of(runs, length)
    texts = {row: asked(patch, None if ids is None else ids[row][words[row]]) for row in set(rows)}
    return [texts[row] for row in rows]
