"""The arguments of a call by name, whatever the user's class or wrapper has done to `forward`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from torch import nn

from vtc.plugins.hf.typing import Model

_VARIOUS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@lru_cache(maxsize=256)
def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """What a function takes; remembered, since reading a signature takes longer than many a call."""
    return inspect.signature(function).parameters


def forwards(model: Model) -> Iterator[Mapping[str, inspect.Parameter]]:
    """What every `forward` of the model takes, from the instance's own to its first base class's."""
    own = vars(model).get("forward")
    if own is not None:
        try:
            yield inspect.signature(own).parameters
        except (TypeError, ValueError):
            pass
    yield from forwards_of(type(model))


def forwards_of(cls: type) -> Iterator[Mapping[str, inspect.Parameter]]:
    """The same of a class."""
    for each in cls.__mro__:
        if each is nn.Module:
            return
        function = each.__dict__.get("forward")
        if inspect.isfunction(function):
            parameters = parameters_of(function)
            yield {name: p for name, p in parameters.items() if name != "self"}


def takes(model: Model, name: str) -> bool:
    """Whether a model's forward takes the argument `name`, or hands it on to one that does.

    A user's subclass, or a kernel library's replacement of the class's forward, may take `**kwargs`.
    """
    for parameters in forwards(model):
        if name in parameters:
            return True
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return False
    inner = getattr(model, "base_model", model)
    return inner is not model and takes(inner, name)


def names(model: Model) -> list[str]:
    """The names of the positional arguments of a model's forward, in order.

    A wrapper that takes `*args` says nothing; what it wraps does.
    """
    for parameters in forwards(model):
        kinds = [p.kind for p in parameters.values()]
        if inspect.Parameter.VAR_POSITIONAL not in kinds:
            return [name for name, p in parameters.items() if p.kind not in _VARIOUS]
    return []


def by_name(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `model`, by name."""
    if not args:
        return dict(kwargs)
    return {**dict(zip(names(model), args, strict=False)), **kwargs}
