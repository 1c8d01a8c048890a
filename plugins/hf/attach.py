"""What a patched model carries, and how it goes on and comes off.

All on the instance, nothing on a class: the attribute `_vtc` (a `scopes.State`), and what the stages of
its patches put on, see `stages.base.Stage`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vtc.plugins.hf.scopes import LOCK, RUNNING, Scope, State, state_of
from vtc.plugins.hf.typing import Model

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch


def sync(model: Model, state: State) -> None:
    """Put on the model what its patches need, or take everything off; `LOCK` is held."""
    patches = state.patches
    for patch in state.attached:
        if patch not in patches:
            patch.text_encoder = None  # its handle may outlive it by far
    for patch in patches:
        patch.equip(model)
    state.attached = patches
    if not patches:
        if state_of(model) is not None:
            take_off_everything(model)
            if state.blocks:
                model._vtc = state
        return
    model._vtc = state
    for patch in patches:
        for stage in patch.stages:
            state.stages[stage.name] = stage
            stage.attach(model, patch)


def take_off_everything(model: Model) -> None:
    """Leave no hook, attribute or config of ours on any module of `model`."""
    for stage in model._vtc.stages.values():
        stage.detach(model)
    model._vtc.stages = {}
    del model._vtc


@contextmanager
def running(model: Model, scope: Scope | None) -> Iterator[None]:
    """Inside, calls of `model` made from this context run under `scope`, None for bare.

    The model keeps what the scope needs until the end, whatever blocks end meanwhile.
    """
    patch = None if scope is None else scope.patch

    def hold(change: Callable[[list[Patch], Patch], None]) -> None:
        if patch is None:
            return
        with LOCK:
            state = state_of(model) or State()
            before = patch in state.patches
            change(state.held, patch)
            if before != (patch in state.patches):
                sync(model, state)

    hold(list.append)
    token = RUNNING.set((model, scope))
    try:
        yield
    finally:
        RUNNING.reset(token)
        hold(list.remove)
