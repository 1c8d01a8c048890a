"""What models have in common that make visual tokens in the middle of a call, not ahead of it.

Nobody hands us the encoder's output there, so hooks follow the call: one on the model notes its
arguments, one on the vision tower opens the ears of the probes. Outside of a call of the model itself
nothing is compressed.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import Tensor, nn

from vtc.plugins.hf.hooks import Hook
from vtc.plugins.hf.probe import Record, recording
from vtc.plugins.hf.question import asked


class Running(NamedTuple):
    """A call under way: the patched model and its arguments by name."""

    model: nn.Module
    kwargs: dict[str, Any]

    def question(self, row: int) -> str:
        """What row `row` of the batch asks."""
        ids, mask = self.kwargs.get("input_ids"), self.kwargs.get("attention_mask")
        if ids is None:
            return asked(self.model._vtc, None)
        mine: Tensor = ids[row] if mask is None else ids[row][mask[row].bool()]
        # a negative id is a placeholder, which no tokenizer reads
        return asked(self.model._vtc, mine[mine >= 0])


_CALL: ContextVar[Running | None] = ContextVar("vtc_call", default=None)
_EARS: ContextVar[Any] = ContextVar("vtc_ears")


def call_hooks(model: nn.Module) -> list[Hook]:
    """The hooks behind `running`."""
    return [
        Hook(model, "forward_pre", note_call),
        Hook(model, "forward", forget_call, always=True),
    ]


def note_call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the model."""
    _CALL.set(Running(model, by_name(model, args, kwargs)))


def forget_call(model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of the model."""
    _CALL.set(None)


def running() -> Running | None:
    """The call under way, None outside of one."""
    return _CALL.get()


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a module's forward by name."""
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def listen() -> None:
    """Collect what the probes see, until `heard`."""
    block = recording()
    _EARS.set((block, block.__enter__()))


def heard() -> Record:
    """What the probes saw since `listen`."""
    block, record = _EARS.get()
    block.__exit__(None, None, None)
    return record
