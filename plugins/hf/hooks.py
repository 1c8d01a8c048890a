"""Hooks on modules: what is hung on a model, and how it comes off again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn


class Hook(NamedTuple):
    """A hook and where it goes.

    Attributes:
        module: what it hangs on.
        kind: `"forward"` or `"forward_pre"`; both are called with keywords.
        function: the hook itself.
        always: whether it runs even when the forward fails.
        first: whether it runs in front of those that are there.
    """

    module: nn.Module
    kind: str
    function: Callable[..., Any]
    always: bool = False
    first: bool = False


def hang(hooks: Iterable[Hook]) -> None:
    """Register every hook."""
    for hook in hooks:
        if hook.kind == "forward_pre":
            hook.module.register_forward_pre_hook(
                hook.function, with_kwargs=True, prepend=hook.first
            )
        else:
            hook.module.register_forward_hook(
                hook.function, with_kwargs=True, always_call=hook.always
            )


def is_hung(hook: Hook) -> bool:
    """Whether a hook is on its module."""
    table = getattr(hook.module, f"_{hook.kind}_hooks")
    return any(value is hook.function for value in list(table.values()))


def take_off(module: nn.Module, *functions: Callable[..., Any]) -> None:
    """Take every hook that is one of `functions` off a module.

    By identity, not by the handles that registering returned: a copy of the module has none of its own.
    """
    for kind in ("forward_pre", "forward"):
        table = getattr(module, f"_{kind}_hooks")
        for key in [key for key, value in table.items() if value in functions]:
            del table[key]
            getattr(module, f"_{kind}_hooks_with_kwargs").pop(key, None)
            module._forward_hooks_always_called.pop(key, None)
