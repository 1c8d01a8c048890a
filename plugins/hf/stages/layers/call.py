"""A call of a model under a method inside it: what its language model has to know."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.plugins.hf import cache
from vtc.plugins.hf.stages.boundary import packed
from vtc.plugins.hf.stages.boundary.proportional import Bias
from vtc.plugins.hf.stages.layers.later import Later
from vtc.plugins.hf.stages.layers.masks import make_masks, of_layer
from vtc.plugins.hf.stages.layers.notes import Notes
from vtc.plugins.hf.stages.layers.plan import budgets_of
from vtc.plugins.hf.stages.layers.prompt import Prompt
from vtc.plugins.hf.stages.layers.shown import Shown
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.cuts import asking_columns

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch

#: from the hook of a model to that of its language model
_PROMPT: ContextVar[Prompt | None] = ContextVar("vtc_prompt", default=None)


def take() -> Prompt | None:
    """The prompt of the call under way, once."""
    prompt = _PROMPT.get()
    _PROMPT.set(None)
    return prompt


def enter(
    model: Model,
    patch: Patch,
    kwargs: dict[str, Any],
    shown: Shown | None,
    generating: bool,
    mask: Tensor | None = None,
    bias: Bias | None = None,
) -> None:
    """Make ready for a call of `model`, in terms of the prompt behind the boundary.

    Args:
        kwargs: the call's arguments, by name.
        shown: the prompt that the call brings, None where it brings none.
        generating: whether transformers' `generate` calls, whose masks are its own.
        mask: the conversation's that `generate` was given, `[B, L]`.
        bias: what is added to the logits of all attention to each column, None for nothing.

    Raises:
        VTCError: the call cannot be compressed.
    """
    _PROMPT.set(None)
    method, held_in = patch.inside, cache.given(kwargs)
    ids = kwargs.get("input_ids")
    inputs = ids if ids is not None else kwargs.get("inputs_embeds")
    if method is None or inputs is None:
        return
    batch, fresh = inputs.shape[:2]
    notes = known(held_in, cache.name(model))
    if notes is not None:
        notes.later, notes.entered = None, True
        notes.own(model)
        notes.fit(batch, cache.name(model))
    own = kwargs.get("attention_mask")
    plain = own is None or (isinstance(own, Tensor) and own.dim() == 2)
    lm = patch.adapter.language_model(model.base_model)
    if shown is not None:
        shown = shown.repeated(batch)
        more = fresh - shown.valid.shape[1]
        front, behind = (more, 0) if ids is None else (0, more)
        budgets = budgets_of(method, shown, len(lm.layers))
        shown, asking = shown.widened(front, behind), _asking(kwargs, shown, front)
        if budgets:
            _refuse_samples(model, kwargs, plain or generating, batch, fresh)
            held = cache.length(held_in)
            if notes is None and held and shown.past is None:  # PEFT's prefix
                past = shown.valid.new_ones(batch, held)
                shown = shown.behind(past)
            types = kwargs.get("token_type_ids")
            types = None if types is None else types[:, -fresh:]
            prompt = Prompt(model, lm, patch.adapter, method, shown, budgets, asking, types, notes)
            if bias is not None:
                prompt.bias = bias.of(0, held), bias.of(held, fresh)
            _PROMPT.set(prompt)
            return
    if notes is None:
        return
    if not plain and not generating:
        raise VTCError(
            "attention_mask: got one that is made already, but behind a prompt that was cut inside "
            "the language model layers need masks of their own; allowed is [batch, length]"
        )
    if shown is not None:
        valid, padded = shown.valid, True
    else:
        valid, padded = _fresh(batch, fresh, own if plain else None, generating, mask, notes)
    own = None if bias is None else bias.of(notes.columns, fresh)
    late(model, lm, notes, held_in, valid.to(inputs.device), padded, own)


def late(
    model: Model,
    lm: Model,
    notes: Notes,
    held_in: Any,
    valid: Tensor,
    padded: bool,
    bias: Tensor | None = None,
) -> Later:
    """The masks of a call that cuts nothing, for layers that hold less than the first.

    Args:
        model: makes the masks, see `make_masks`.
        valid: bool `[B, q]`, the new columns.
        padded: whether there may be padding among them.
        bias: `[B, q]`, theirs.
    """
    notes.append(valid, padded, bias)
    like = torch.empty(*valid.shape, 0, dtype=next(lm.parameters()).dtype, device=valid.device)
    masks: list[Any] = []
    biases: list[Bias | None] = []
    for held in notes.held:
        made = make_masks(
            model,
            lm,
            like,
            held.valid if held.padded else None,
            held_in,
            (held.first, held.last),
        )
        masks += [of_layer(made, lm, number) for number in range(held.first, held.last)]
        biases += [None if held.bias is None else Bias(held.bias)] * (held.last - held.first)
    notes.later = Later(notes.held[0].first, masks, biases)
    return notes.later


def known(held_in: Any, name: str) -> Notes | None:
    """What was noted on a cache of its layers, brought up to date; None for nothing."""
    notes = cache.inside(held_in)
    if notes is None:
        return None
    length = held_in.get_seq_length()
    if not isinstance(length, Tensor) and length == 0:  # its owner has reset it
        cache.forget(held_in)
        return None
    notes.follow(length, name)
    return notes


def _asking(kwargs: dict[str, Any], shown: Shown, front: int) -> Tensor:
    """The columns that ask, `[B, R]`; drafts behind the prompt do not."""
    for key in ("labels", "shift_labels"):
        labels = kwargs.get(key)
        if isinstance(labels, Tensor) and labels.shape == shown.valid.shape:
            columns = asking_columns(shown.valid, labels, key == "shift_labels")
            break
    else:
        columns = asking_columns(shown.valid)
    return torch.where(columns < 0, columns, columns + front)


def _fresh(
    batch: int,
    fresh: int,
    own: Tensor | None,
    generating: bool,
    mask: Tensor | None,
    notes: Notes,
) -> tuple[Tensor, bool]:
    """Which new columns are real, bool `[B, q]`, and whether some may not be."""
    told = None
    if generating:  # what was generated is real; before that, what the caller said
        if mask is not None and mask.shape[1] > notes.columns:
            told = mask.repeat_interleave(batch // len(mask), 0)
            told = told[:, notes.columns : notes.columns + fresh]
    elif own is not None:
        told = own[:, -fresh:]
    if told is None:
        return notes.held[0].valid.new_ones(batch, fresh), False
    told = told.bool()
    told = torch.nn.functional.pad(told, (0, fresh - told.shape[1]), value=True)
    return told, not bool(told.all())


def _refuse_samples(
    model: Model, kwargs: dict[str, Any], plain: bool, batch: int, fresh: int
) -> None:
    if not plain or packed.samples(model, kwargs, batch, fresh) is not None:
        raise VTCError(
            "attention_mask: a row holds several samples, or its mask is made already; inside the "
            "language model tokens are dropped of rows of one sample with a mask [batch, length]"
        )
