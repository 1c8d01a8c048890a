"""For whoever measures: vision layers that are run once, as long as they are given the same.

Settings are compared on the same pictures, and the tower does the same for all of them. Inside
`remembering` an encoder layer that is given what it was given last answers from memory, bit by bit what
it would compute; a layer whose attention a method reads runs as always, so that the method sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from vtc.errors import VTCError
from vtc.plugins.hf.adapters import adapter_for
from vtc.plugins.hf.probe import Heads, noted_of
from vtc.plugins.hf.typing import Model


class Remembered:
    """The last call of an encoder layer, in the place of its `forward`."""

    def __init__(self, layer: nn.Module, index: int) -> None:
        self.layer, self.index, self.forward = layer, index, layer.forward
        self.forget()

    def forget(self) -> None:
        self.given: list[Any] | None = None
        self.answer: Any = None
        self.heads: list[Heads] | None = None  # what a probe saw, None if there was none

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        # transformers hands it down to the layers, but collects hidden states around them
        told = {name: value for name, value in kwargs.items() if name != "output_hidden_states"}
        given, shape = tree_flatten((args, told))
        given.append(shape)
        if self.given is None or not _equal(self.given, given):
            self.forget()
        noted = noted_of(self.index)
        if self.given is None or (noted is not None and self.heads is None):
            before = 0 if noted is None else len(noted)
            self.answer, self.given = self.forward(*args, **kwargs), given
            self.heads = None if noted is None else noted[before:]
        elif noted is not None:
            noted.extend(self.heads or ())
        return self.answer


@contextmanager
def remembering(model: Model) -> Iterator[list[Remembered]]:
    """Inside the block, the encoder layers of `model` remember their last call; yields them, none
    where no layers are found. One thread at a time; memory for one output a layer.

    A layer answers from memory without gradients alone, and as long as nobody writes into what a layer
    was given or has returned: transformers' encoders and this package do not.
    """
    held = [Remembered(layer, index) for index, layer in enumerate(_layers(model))]
    before = [vars(each.layer).get("forward") for each in held]
    for each in held:
        each.layer.forward = each  # type: ignore[method-assign]
    try:
        yield held
    finally:
        for each, own in zip(held, before, strict=True):
            if own is None:
                del each.layer.forward
            else:
                each.layer.forward = own


def _layers(model: Model) -> list[nn.Module]:
    try:
        return list(adapter_for(model).layers(model.base_model))
    except (AttributeError, VTCError):
        return []


def _equal(one: list[Any], two: list[Any]) -> bool:
    return len(one) == len(two) and all(
        _same(before, now) for before, now in zip(one, two, strict=True)
    )


def _same(before: Any, now: Any) -> bool:
    if before is now:
        return True
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        alike = before.dtype == now.dtype and before.device == now.device
        return alike and torch.equal(before, now)
    return not isinstance(before, Tensor) and not isinstance(now, Tensor) and before == now
