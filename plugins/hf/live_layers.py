"""Leave out the encoder layers whose output nobody reads, for one call and not for others.

LLaVA takes its features before the last layer of the tower, so that layer runs in vain unless a signal
comes from it. The tower's list of layers is replaced by one with the same layers, which inside
`only_first` seems to end early to the code of that context alone: calls of other threads see it whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

#: how many layers are to run in this context, None for all
_LIVE: ContextVar[int | None] = ContextVar("vtc_live_layers", default=None)


@contextmanager
def only_first(count: int) -> Iterator[None]:
    """Inside, towers run their first `count` layers."""
    token = _LIVE.set(count)
    try:
        yield
    finally:
        _LIVE.reset(token)


class LiveLayers(nn.ModuleList):
    """The layers of a list; `found` is the list itself, which goes back to its place."""

    @classmethod
    def put_on(cls, owner: nn.Module, name: str) -> None:
        """Stand in for the list that `owner` holds as `name`."""
        found = getattr(owner, name)
        if type(found) is nn.ModuleList:
            mine = cls()
            mine._modules = found._modules  # shared, so that what is changed in one is in both
            mine.training = found.training
            mine.__dict__["found"] = (
                found,
            )  # in a tuple: no submodule, or it would be saved twice
            setattr(owner, name, mine)

    @staticmethod
    def take_off(owner: nn.Module) -> None:
        """Put back every list that `put_on` took the place of."""
        for name, child in list(owner._modules.items()):
            if isinstance(child, LiveLayers):
                (found,) = child.__dict__["found"]
                found.training = child.training
                owner._modules[name] = found

    def _live(self) -> list[nn.Module]:
        return list(self._modules.values())[: _LIVE.get()]

    def __len__(self) -> int:
        return len(self._live())

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._live())

    def __getitem__(self, index: Any) -> Any:
        layers = self._live()
        return nn.ModuleList(layers[index]) if isinstance(index, slice) else layers[index]
