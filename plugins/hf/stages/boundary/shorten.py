"""From the arguments of a long call to those of the short one: the heart of the plug-in.

A long call has columns, a short one has places. What a KV cache holds already stands in front of both.
`generate` is given the whole conversation again, a plain forward only what is new.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.plugins.hf import cache
from vtc.plugins.hf.cache import Held
from vtc.plugins.hf.scopes import Scope
from vtc.plugins.hf.stages.boundary import packed
from vtc.plugins.hf.stages.boundary.encode import Encoded, encode
from vtc.plugins.hf.stages.boundary.logits import short_places
from vtc.plugins.hf.stages.boundary.pictures import hide, positions
from vtc.plugins.hf.stages.boundary.prompt import (
    Past,
    Prompt,
    concat_compactions,
    concat_positions,
    generation_setting,
    past_of,
)
from vtc.plugins.hf.stages.boundary.proportional import bias_of
from vtc.plugins.hf.stages.layers.shown import Shown
from vtc.plugins.hf.stages.layers.shown import shown as shown_by
from vtc.plugins.hf.typing import Model
from vtc.plugins.hf.watch import watched
from vtc.plugins.model.compaction import (
    Compaction,
    build_compaction,
    image_runs,
    reading_order,
    rows_of,
)
from vtc.plugins.model.inputs import PIXELS
from vtc.plugins.model.positions import (
    default_positions,
    last_of,
    next_of,
    prompt_positions,
    short_positions,
)
from vtc.plugins.model.question import asked

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch

#: what padding of a short row gets in arguments that have a value for every column; others get 0
_FILL = {"labels": -100, "shift_labels": -100}
#: arguments of that shape that are dealt with one by one
_NOT_TEXT = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "shift_labels"}


@dataclass
class Short:
    """A shortened call.

    Attributes:
        kwargs: its arguments.
        compaction: how it reads from the long one, None when nothing was dropped.
        dropped: columns that are gone.
        held: what a cache holds behind the call, None when nothing was dropped.
        wanted: which logits each row wants, see `logits.short_places`.
        shown: what its new columns show, for a method inside the language model; None for nothing.
        bias: float32 `[B, S]`, what is added to the logits of all attention to its new columns; None for
            nothing.
    """

    kwargs: dict[str, Any]
    compaction: Compaction | None = None
    dropped: int = 0
    held: Held | None = None
    wanted: Tensor | None = None
    shown: Shown | None = None
    bias: Tensor | None = None


@watched
def shorten(model: Model, scope: Scope, kwargs: dict[str, Any], generating: bool) -> Short:
    """Encode and compress what the call shows, and drop the placeholders of what is gone.

    Args:
        model: a patched model.
        scope: what the call comes under.
        kwargs: the call's arguments, by name.
        generating: whether the call is a `generate` and not a plain forward.
    """
    patch, base = scope.patch, model.base_model
    assert patch is not None
    prompt = Prompt(model, patch, kwargs, generating)
    given = cache.given(kwargs)
    used = prompt.past is None and bool(getattr(given, "is_initialized", False))
    if used and patch.adapter.wants_new_cache:
        raise VTCError(
            f"{cache.name(model)}: got one that was used and is empty again, which "
            f"{type(model).__name__} takes for one in use; give a new one"
        )
    placeholders, length = prompt.placeholders, prompt.length

    # one look at the prompts, before the encoders have work queued
    read = torch.stack([prompt.real, *placeholders.values()]).cpu()
    host, shown = read[0], dict(zip(placeholders, read[1:].unbind(), strict=True))

    def questions(modality: str, lengths: list[int]) -> list[str]:
        words = prompt.real & ~prompt.visual
        return _questions(patch, prompt.ids, words, image_runs(shown[modality], lengths), length)

    def visible(modality: str, lengths: list[int]) -> list[Tensor]:
        return [host.flatten()[run] for run in image_runs(shown[modality], lengths)]

    hides = bool((~host & torch.stack(list(shown.values())).any(0)).any())
    done = encode(
        patch, base, kwargs, prompt.ids, placeholders, shown, questions, visible if hides else None
    )
    runs = {e.modality: image_runs(shown[e.modality], e.lengths) for e in done}
    every = [run for of_one in runs.values() for run in of_one]
    report, rows, order = None, [], []
    if done:
        reports, rows = [each for e in done for each in e.reports], rows_of(every, length)
        order = reading_order(every)
        rows = [rows[i] for i in order]
        report = patch.add_report(
            scope.call, [reports[i] for i in order], rows, sum(e.seconds for e in done)
        )

    new = {k: v for k, v in kwargs.items() if k not in PIXELS.values()}
    compressed = cache.held(given) is not None
    if done:
        new["mm_encoder_outputs"] = {e.modality: e.output for e in done}
        if all(e.identity for e in done) and not compressed:
            whole = Short(new)
            if report is not None and patch.inside is not None:
                columns = slice(prompt.first, None)
                whole.shown = shown_by(
                    prompt.of(done)[:, columns],
                    prompt.real[:, columns],
                    _seen(prompt),
                    report,
                    rows,
                )
            return whole
    host = hide(host, [e.smaller for e in done])
    for e in done:
        e.settle()
        if e.smaller is not None:
            new.update((k, v) for k, v in e.smaller.kwargs.items() if k not in PIXELS.values())
    if generating:
        for e in done:
            _join_rows(e.output, rows_of(runs[e.modality], length))
    numbers = packed.samples(model, kwargs, prompt.batch, length) if not generating else None

    local = _compact(prompt, host, shown, done, every)
    _text_side(new, prompt, local)
    small = None
    if any(e.resized for e in done):
        small = _compact(prompt, host, shown, done, every, [s for e in done for s in e.seats])
    held = _place(new, prompt, local, numbers, small)
    wanted = None
    if "logits_to_keep" in new and not generating:
        keep, wanted = short_places(new["logits_to_keep"], local, length)
        new["logits_to_keep"] = keep
    compaction = held.compaction if generating else local
    short = Short(new, compaction, length - compaction.slot.shape[1], held, wanted)
    if report is not None and (patch.method.weighs or patch.inside is not None):
        visual = local.gather(prompt.of(done), False)
        short.bias = bias_of(done, order, visual & local.valid)
        if patch.inside is not None:
            short.shown = shown_by(visual, local.valid, _seen(prompt), report, rows)
    return short


def _seen(prompt: Prompt) -> Tensor | None:
    """Which tokens of the cache are real, `[B, C]`; None where it holds none."""
    return None if prompt.past is None else prompt.past.compaction.valid


def _compact(
    prompt: Prompt,
    host: Tensor,
    shown: dict[str, Tensor],
    done: list[Encoded],
    runs: list[Tensor],
    anchors: list[Tensor] | None = None,
) -> Compaction:
    """How the new places read from the caller's columns; `anchors` in place of those that are `done`."""
    first, length = prompt.first, prompt.length
    visual = torch.zeros_like(host)
    for e in done:
        visual |= shown[e.modality]
    anchors = [a for e in done for a in e.anchors] if anchors is None else anchors
    # flat indices of the whole rows as flat indices of the columns behind `first`
    runs = [(run // length) * (length - first) + run % length - first for run in runs]
    # Padding on the user's side. Rows that needed none end together, so that logits[:, -1] are the next
    # token's, or start together under labels, so that none is predicted from padding.
    labelled = any(prompt.kwargs.get(key) is not None for key in ("labels", "shift_labels"))
    # What a mask hides in the middle of a row is no padding.
    first_real, last_real = all(host[:, 0].tolist()), all(host[:, -1].tolist())
    left = prompt.generating or not (first_real if not last_real else labelled and first_real)
    out = build_compaction(host[:, first:], visual[:, first:], runs, anchors, left)
    out = out.to(prompt.device)
    return replace(out, slot=out.slot + first, position=out.position + first)


def _text_side(new: dict[str, Any], prompt: Prompt, local: Compaction) -> None:
    """Every argument that has a value for each of the caller's columns, at the places that are left."""
    past = None if not prompt.generating or prompt.past is None else prompt.past.compaction
    whole = local if past is None else concat_compactions(past, local)
    if prompt.ids is not None:
        new["input_ids"] = whole.gather(prompt.ids, _pad_id(prompt.model, prompt.kwargs))
    if prompt.embeds is not None:
        new["inputs_embeds"] = whole.gather(prompt.embeds)
    shape = (prompt.batch, prompt.length)
    for key, value in new.items():
        if key in _NOT_TEXT or not isinstance(value, Tensor) or value.shape[:2] != shape:
            continue
        new[key] = whole.gather(value.to(prompt.device), _FILL.get(key, 0))
    shifted = new.get("shift_labels")
    if isinstance(shifted, Tensor) and shifted.shape == shape:
        # the label of a place is the token at the next place: it stands in the column before that
        end = torch.full_like(whole.slot[:, :1], prompt.length)
        far = torch.where(whole.valid, whole.slot, prompt.length)
        following = torch.cat([far[:, 1:], end], 1) - 1
        new["shift_labels"] = (
            shifted.to(prompt.device)
            .gather(1, following)
            .masked_fill(~whole.valid, _FILL["shift_labels"])
        )


def _place(
    new: dict[str, Any],
    prompt: Prompt,
    local: Compaction,
    numbers: Tensor | None,
    small: Compaction | None,
) -> Held:
    """Positions and mask of the short call, and what its cache will hold.

    `small` is a prompt around pictures that were made smaller, none of whose tokens is gone.
    """
    model, patch, past = prompt.model, prompt.patch, prompt.past
    base, kwargs, generating = model.base_model, prompt.kwargs, prompt.generating
    # a plain forward of some families counts from one; the notes on a cache count from nought
    one = 0 if generating else patch.adapter.first_position
    known = None if past is None else past.long
    if small is not None:
        long = positions(prompt, small, new, known)
    else:
        own = getattr(base, "get_rope_index", None)
        long = prompt_positions(own, kwargs, prompt.real, known, prompt.first)
    if kwargs.get("position_ids") is not None:
        long = long - one
    sample = None if numbers is None else packed.sample_of_places(numbers, local)
    relative = replace(
        local, slot=local.slot - prompt.first, position=local.position - prompt.first
    )
    explicit = short_positions(patch.positions, long[..., prompt.first :], relative, sample)
    if past is not None:
        explicit = explicit + _shift(past, patch.positions, len(explicit), prompt)[..., None]
    whole, valid, own = local, local.valid, explicit
    columns = prompt.length
    if past is not None:
        # 0 where the caller's columns count what is in the cache
        ahead = past.columns - prompt.first
        moved = replace(local, slot=local.slot + ahead, position=local.position + ahead)
        whole = concat_compactions(past.compaction, moved)
        valid, columns = whole.valid, columns + ahead
        own = concat_positions(past.own, explicit)
        if ahead:
            goes_on = kwargs.get("position_ids") is None  # else they are the conversation's already
            long = concat_positions(
                past.long, long + (last_of(past.long) + 1)[None, :, None] * goes_on
            )
    visual = local.gather(prompt.visual, False)
    if past is not None:
        visual = torch.cat([past.visual, visual], 1)
    after = next_of(own, valid, patch.positions)
    held = Held(whole, columns, long, own, after, visual)

    new.pop("position_ids", None)
    for key in packed.LENGTHS:
        new.pop(key, None)
    gaps = patch.positions != "contiguous"
    if gaps or len(long) > 1 or local.ragged or past is not None or sample is not None:
        given = own if generating else explicit
        new["position_ids"] = (given[0] if len(given) == 1 else given) + one
        _tell_deltas(base, given, valid, after)
    if sample is not None:
        if (gaps and len(explicit) == 1) or packed.uses_flash(model):
            new.update(packed.mask_of(model, sample, new.get("token_type_ids")))
    # Gaps need an explicit mask (packed.one_sample); rows of different length need one anyway
    elif prompt.mask is not None or local.ragged or past is not None or gaps:
        kind = torch.long if prompt.mask is None else prompt.mask.dtype
        new["attention_mask"] = valid.to(kind)
        if gaps and not generating:
            new.update(packed.one_sample(model, new))
    return held


def _shift(past: Past, policy: str, rows: int, prompt: Prompt) -> Tensor:
    """What to add to positions of the new part so that they go on behind the cache, `[R, B]`."""
    behind = past.after
    if policy == "original":
        behind = last_of(past.long)[None] + 1
        # they may count from the start of the conversation already
        if prompt.first or prompt.kwargs.get("position_ids") is not None:
            behind = torch.zeros_like(behind)
    behind = behind.expand(rows, -1).clone()
    if rows == 4:
        behind[0] = past.compaction.valid.sum(1)  # the text's row has no gaps
    return behind


def continued_step(model: Model, patch: Patch, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a forward that goes on behind a compressed prompt in a cache, in short terms.

    A caller with a decoding loop of its own lets the mask of the long prompt grow and leaves the
    positions to transformers, which counts what is in the cache. A mask that fits the cache is left
    as it is.

    Args:
        kwargs: the call's arguments, by name.

    Returns:
        What changes.
    """
    held_in = cache.given(kwargs)
    known = cache.held(held_in)
    ids = kwargs.get("input_ids")
    inputs = ids if ids is not None else kwargs.get("inputs_embeds")
    if known is None or inputs is None:
        return {}
    batch, fresh = inputs.shape[:2]
    count, mask = cache.length(held_in), kwargs.get("attention_mask")
    fits = mask is None or (mask.dim() == 2 and mask.shape[1] == count + fresh)
    if known.broken is not None and kwargs.get("position_ids") is not None and fits:
        if mask is not None or bool(known.compaction.valid.all()):
            return {}  # the caller knows what the cache holds
    past = past_of(
        model,
        patch,
        kwargs,
        batch,
        mask if mask is not None and mask.dim() == 2 else None,
        inputs.device,
    )
    assert past is not None
    if mask is None:
        tail = torch.ones(batch, fresh, dtype=torch.long, device=inputs.device)
    elif mask.dim() == 2 and mask.shape[1] == past.columns + fresh:
        tail = mask[:, past.columns :]
    else:
        return {}
    new: dict[str, Any] = {"attention_mask": torch.cat([past.compaction.valid.to(tail), tail], 1)}
    if kwargs.get("position_ids") is None:
        step = default_positions(tail.bool())
        positions = past.after[..., None] + step + patch.adapter.first_position
        new["position_ids"] = positions[0] if len(positions) == 1 else positions
    return new


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


def _tell_deltas(base: Model, positions: Tensor, valid: Tensor, after: Tensor) -> None:
    """Where M-RoPE goes on in a later forward that brings no positions of its own."""
    if len(positions) > 1 and hasattr(base, "rope_deltas"):
        base.rope_deltas = (after[-3:].amax(0) - valid.sum(1))[:, None]


def _pad_id(model: Model, kwargs: dict[str, Any]) -> int:
    own = getattr(model.config.get_text_config(), "pad_token_id", None)
    pads = generation_setting(model, kwargs, "pad_token_id"), own
    return next((pad for pad in pads if pad is not None and pad >= 0), 0)


def _questions(
    patch: Patch, ids: Tensor | None, words: Tensor, runs: list[Tensor], length: int
) -> list[str]:
    """The text that each image is asked about, read where `words [B, L]` is True."""
    rows = rows_of(runs, length)
    texts = {
        row: asked(patch.method, patch.tokenizer, None if ids is None else ids[row][words[row]])
        for row in set(rows)
    }
    return [texts[row] for row in rows]
