"""Names to method classes: register by decorator, list by glob, create by name."""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import TYPE_CHECKING, Any, TypeVar

from vtc.errors import VTCError, nearest

if TYPE_CHECKING:
    from vtc.methods.base import Method

_METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound="type[Method]")


def register_method(cls: M) -> M:
    """Class decorator: make a `Method` available under its `name`.

    Raises:
        VTCError: the class has no name, or the name belongs to another class.
    """
    name = getattr(cls, "name", "")
    if not name:
        raise VTCError(f"name: {cls.__qualname__} has none, give the class a `name`")
    known = _METHODS.get(name)
    if known is not None and known.__qualname__ != cls.__qualname__:
        raise VTCError(f"name: {name!r} is already registered by {known.__qualname__}")
    _METHODS[name] = cls
    return cls


def _load() -> dict[str, type[Method]]:
    import vtc.methods  # noqa: F401  (importing the package registers the built-in methods)

    return _METHODS


def list_methods(pattern: str = "*") -> list[str]:
    """Registered method names that match a glob, sorted."""
    return sorted(fnmatch.filter(_load(), pattern))


def method_class(name: str) -> type[Method]:
    """The class registered under `name`."""
    methods = _load()
    if name not in methods:
        raise VTCError(
            f"method: got {name!r}, available are {', '.join(sorted(methods))}"
            f"{nearest(name, methods)}"
        )
    return methods[name]


def create_method(name: str, **options: Any) -> Method:
    """An instance of the method `name`; `options` are its dataclass fields.

    Raises:
        VTCError: unknown method, unknown option or a value out of range.
    """
    cls = method_class(name)
    allowed = [f.name for f in dataclasses.fields(cls) if f.init]
    for option in options:
        if option not in allowed:
            raise VTCError(
                f"{option}: {name!r} has no such option, it takes {', '.join(allowed)}"
                f"{nearest(option, allowed)}"
            )
    return cls(**options)
