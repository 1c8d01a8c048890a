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
    """

    module: nn.Module
    kind: str
    function: Callable[..., Any]
    always: bool = False


def hang(hooks: Iterable[Hook]) -> None:
    """Register every hook."""
    for hook in hooks:
        if hook.kind == "forward_pre":
            hook.module.register_forward_pre_hook(hook.function, with_kwargs=True)
        else:
            hook.module.register_forward_hook(
                hook.function, with_kwargs=True, always_call=hook.always
            )


def take_off(hooks: Iterable[Hook]) -> None:
    """Undo `hang`.

    By identity, not by the handles that registering returned: a deep copy has none of its own.
    """
    for module, kind, function, _ in hooks:
        table = getattr(module, f"_{kind}_hooks")
        for key in [key for key, value in table.items() if value is function]:
            del table[key]
            getattr(module, f"_{kind}_hooks_with_kwargs").pop(key, None)
            module._forward_hooks_always_called.pop(key, None)
