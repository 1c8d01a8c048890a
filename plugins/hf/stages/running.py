"""What models have in common that make visual tokens in the middle of a call, not ahead of it.

Nobody hands us the encoder's output there, so hooks follow the call: one on the model notes its
arguments, one on the vision tower opens the ears of the probes. Outside of a call of the model itself
nothing is compressed.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from vtc.plugins.hf import arguments, scopes
from vtc.plugins.hf.hooks import Hook
from vtc.plugins.hf.probe import Record, recording
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.question import asked

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch


class Running(NamedTuple):
    """A call under way: the patched model, its arguments by name, and what it comes under."""

    model: Model
    kwargs: dict[str, Any]
    scope: scopes.Scope

    @property
    def patch(self) -> Patch:
        """The patch that holds for the call."""
        assert self.scope.patch is not None
        return self.scope.patch

    def question(self, row: int) -> str:
        """What row `row` of the batch asks."""
        ids, mask = self.kwargs.get("input_ids"), self.kwargs.get("attention_mask")
        if ids is None:
            return asked(self.patch.method, self.patch.tokenizer, None)
        mine: Tensor = ids[row] if mask is None else ids[row][mask[row].bool()]
        # a negative id is a placeholder, which no tokenizer reads
        return asked(self.patch.method, self.patch.tokenizer, mine[mine >= 0])


_CALL: ContextVar[Running | None] = ContextVar("vtc_call", default=None)
_EARS: ContextVar[Any] = ContextVar("vtc_ears")


def call_hooks(model: Model) -> list[Hook]:
    """The hooks behind `running`."""
    return [
        Hook(model, "forward_pre", note_call),
        Hook(model, "forward", forget_call, always=True),
    ]


def note_call(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the model."""
    _CALL.set(None)
    scope = scopes.current(model)
    if scope is not None and scope.patch is not None and scope.patch.at_boundary:
        _CALL.set(Running(model, arguments.by_name(model, args, kwargs), scope))


def forget_call(model: Model, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of the model."""
    _CALL.set(None)


def running() -> Running | None:
    """The call under way, None outside of one."""
    return _CALL.get()


def listen(patch: Patch) -> None:
    """Collect what the probes of a patch see, until `heard`."""
    block = recording(layer for _, layer in patch.probed)
    _EARS.set((block, block.__enter__()))


def heard() -> Record:
    """What the probes saw since `listen`."""
    block, record = _EARS.get()
    block.__exit__(None, None, None)
    return record
