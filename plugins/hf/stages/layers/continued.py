"""Who may continue a cache whose layers hold different numbers of tokens: who makes masks for them.

A bare model sizes the masks of all layers by the first one, and attention fails on the shapes or, worse,
does not. The cache itself sees that, so that nothing has to stay on a model or be put on a class.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from vtc.errors import VTCError
from vtc.plugins.hf import cache
from vtc.plugins.hf.scopes import RUNNING, current
from vtc.plugins.hf.stages.layers.notes import Notes
from vtc.plugins.hf.typing import Model

#: the models that have filled caches; notes name them, so that a cache can be copied and pickled
_OWNERS: weakref.WeakValueDictionary[int, Model] = weakref.WeakValueDictionary()


def watch(held_in: Any, notes: Notes, model: Model) -> None:
    """Keep notes on a cache, and refuse calls that know nothing of them."""
    own(notes, model)
    cache.note_inside(held_in, notes, _sizes)


def own(notes: Notes, model: Model) -> None:
    """`model` continues what is noted."""
    notes.owner = id(model)
    _OWNERS[id(model)] = model


def _sizes(held_in: Any, *args: Any, **kwargs: Any) -> Any:
    """`get_mask_sizes` of a cache, which transformers calls where it makes masks.

    Raises:
        VTCError: a call that does not run under compression inside the language model.
    """
    notes = cache.inside(held_in)
    if notes is not None and not torch.compiler.is_compiling() and not _expected(notes):
        held = sorted({notes.columns, *(held.valid.shape[1] for held in notes.held)})
        raise VTCError(
            "cache: cannot be continued by a bare model, it holds a prompt that was cut inside the "
            f"language model, so that its layers hold {held[0]} to {held[-1]} tokens; continue it "
            "under a method that works there, or start with a fresh one"
        )
    return held_in._vtc_plain.get_mask_sizes(held_in, *args, **kwargs)


def _expected(notes: Notes) -> bool:
    if notes.entered:
        return True
    running, model = RUNNING.get(), _OWNERS.get(notes.owner)
    try:
        scope = running[1] if running is not None else None if model is None else current(model)
    except VTCError:  # the call itself says so
        return True
    return scope is not None and scope.patch is not None and scope.patch.inside is not None
