"""What a user holds of a patch: a context manager, its reports, and `remove()`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vtc.methods.base import Method
from vtc.plugins.hf.attach import sync
from vtc.plugins.hf.patch import Patch
from vtc.plugins.hf.scopes import (
    LOCK,
    Block,
    Call,
    State,
    caller,
    note_entered,
    note_left,
    state_of,
)
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.compaction import Compaction
from vtc.report import Report
from vtc.several import name_of, settings_of


class Handle:
    """A patch for a model: use it as a context manager, or `remove()` what `vtc.apply` put on.

    A block's settings hold for the code that entered it, and for threads that it starts. Blocks on one
    model may overlap in any order; each takes away its own patch alone, and leaving the last one leaves
    the model as it was found.
    """

    def __init__(self, model: Model, patch: Patch) -> None:
        self.model, self._patch = model, patch
        self._blocks: list[Block] = []
        self._found: Patch | None = None  # by `apply`
        self._used = False

    @property
    def reports(self) -> list[Report]:
        """One `Report` for every prefill with images under this patch, the last 1000.

        Calls of several threads stand in the order in which they were made; `call` tells them apart.
        """
        return self._patch.reports

    @property
    def compaction(self) -> Compaction | None:
        """How the last prompt with images was shortened, for what is in terms of the short one: logits,
        hidden states, attentions. `slot[b, i]` is the column of the caller's prompt that place i stands
        for, `position[b, i]` the column that gives its position, `valid[b, i]` False for padding.

        None before the first such prompt, when nothing was dropped, and for models whose prompt is not
        shortened (Mllama, mPLUG-DocOwl).
        """
        return self._patch.compaction

    @property
    def method(self) -> Method:
        """The method on the model, of several the first that tokens pass."""
        return self._patch.methods[0]

    @property
    def methods(self) -> tuple[Method, ...]:
        """All methods on the model, in the order in which tokens pass them."""
        return self._patch.methods

    @property
    def text_encoder(self) -> Any:
        """What a text-guided method reads the question with, None for others and once the patch is off.

        Hold on to it where the patch comes off and on often: it is loaded anew when nobody has it.
        """
        return self._patch.text_encoder

    @property
    def active(self) -> bool:
        """Whether this patch is on the model, for good or in an open block."""
        state = state_of(self.model)
        return state is not None and self._patch in state.patches

    @contextmanager
    def call(self) -> Iterator[Call]:
        """Inside, calls made here (or in threads started here) come under this patch and report to the
        `Call` that is yielded as well.

            with handle.call() as call:
                out = model.generate(**inputs)
            call.report, call.compaction
        """
        call = Call()
        block = self._enter(caller(), call)
        try:
            yield call
        finally:
            self._leave(block)

    def __del__(self) -> None:
        if not self._used:
            warnings.warn(
                "vtc.compress(...) had no effect: it was never entered. Write "
                "`with vtc.compress(...):`, or take vtc.apply(...), which stays on",
                RuntimeWarning,
                stacklevel=2,
            )

    def remove(self) -> None:
        """Take this patch off; nothing happens when it is not, or no longer, on the model."""
        state = state_of(self.model)
        if state is None:
            return
        with LOCK:
            if state.patch is self._patch:
                state.patch = None
            for block in state.blocks:
                if block.patch is self._patch:
                    block.patch = None
            sync(self.model, state)

    def __enter__(self) -> Handle:
        self._blocks.append(self._enter(caller(), None))
        return self

    def __exit__(self, *exception: object) -> None:
        frame = caller()
        mine = [block for block in self._blocks if block.frame is frame] or self._blocks
        block = mine[-1]
        self._blocks.remove(block)
        self._leave(block)
        state = state_of(self.model)
        if state is not None and state.patch is self._patch and not self._blocks:
            with LOCK:  # what `apply` found comes back
                state.patch, self._found = self._found, None
                sync(self.model, state)

    def _enter(self, frame: FrameType, call: Call | None) -> Block:
        self._used = True
        self._patch.equip(self.model)
        with LOCK:
            state = state_of(self.model) or State()
            block = Block(self._patch, call, frame)
            state.blocks.append(block)
            sync(self.model, state)
        note_entered(block)
        return block

    def _leave(self, block: Block) -> None:
        note_left(block)
        with LOCK:
            state = state_of(self.model) or State()
            state.blocks = [each for each in state.blocks if each is not block]
            block.close()
            if block.suspended is not None and state.patch is None:
                state.patch = block.suspended
            sync(self.model, state)

    def __repr__(self) -> str:
        methods = self._patch.methods
        settings = ", ".join(f"{k}={v!r}" for k, v in settings_of(methods).items())
        count = len(self.reports)
        return (
            f"<{name_of(methods)}({settings}) on {type(self.model).__name__}, "
            f"{'active' if self.active else 'not active'}, {count} report{'' if count == 1 else 's'}>"
        )
