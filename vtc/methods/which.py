"""Methods for error messages: which of the registered ones work where another one does not."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.registry import create_method, list_methods

_ASKING: ContextVar[bool] = ContextVar("vtc_which", default=False)


def which(works: Callable[[Method], bool]) -> list[str]:
    """Names of the methods in front of the language model, with their default options, that `works`
    holds for.

    `"none"`, methods that need an option, and those for which `works` raises `VTCError` are left out.
    """
    if _ASKING.get():  # a method that is asked refuses, and looks for others to name
        return []
    found, token = [], _ASKING.set(True)
    try:
        for name in list_methods():
            try:
                method = create_method(name)
                method.check()
                if name != "none" and method.where == "boundary" and works(method):
                    found.append(name)
            except (VTCError, TypeError):
                continue
    finally:
        _ASKING.reset(token)
    return found


def without_signals() -> list[str]:
    """Methods that read nothing of the vision tower and of the question."""
    return which(lambda method: not method.requests() and not method.requests(has_cls=False))


def without_cls() -> list[str]:
    """Methods that read signals, and have stand-ins where the vision tower has no CLS token."""
    return which(lambda method: bool(method.requests()) and bool(method.requests(has_cls=False)))


def quoted(names: list[str]) -> str:
    """`'a', 'b' and 'c'`."""
    words = [repr(name) for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) or "none"
