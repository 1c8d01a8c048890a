"""For whoever measures: what is done to a prompt ahead of the language model, from begin to end."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
Around = Callable[[], AbstractContextManager[Any]]

_AROUND: ContextVar[Around | None] = ContextVar("vtc_around", default=None)


@contextmanager
def watching(around: Around) -> Iterator[None]:
    """Inside the block, images are encoded and prompts shortened within `around()`; other threads
    are left alone."""
    token = _AROUND.set(around)
    try:
        yield
    finally:
        _AROUND.reset(token)


def watched(function: F) -> F:
    """A function that runs within what `watching` was given, if anything."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        around = _AROUND.get()
        if around is None:
            return function(*args, **kwargs)
        with around():
            return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]
