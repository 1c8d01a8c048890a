"""Several methods in one plan, each at a place of its own; by name `"a+b"`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtc.errors import VTCError

if TYPE_CHECKING:
    from vtc.methods.base import Method


def names_of(text: str) -> list[str]:
    """`"a+b"` as names; a name without `+` is one."""
    return [name.strip() for name in text.split("+")] if isinstance(text, str) else [text]


def name_of(methods: Sequence[Method]) -> str:
    """The methods by name, `"a+b"`."""
    return "+".join(method.name for method in methods)


def settings_of(methods: Sequence[Method]) -> dict[str, Any]:
    """The settings of one method, or those of several by name."""
    if len(methods) == 1:
        return methods[0].settings()
    return {method.name: method.settings() for method in methods}


def check_places(methods: Sequence[Method]) -> None:
    """Raise `VTCError` unless there is a method, and none works where another one does."""
    if not methods:
        raise VTCError("method: got an empty list, allowed are methods, each at a place of its own")
    for index, method in enumerate(methods):
        for other in methods[:index]:
            if other.where == method.where:
                raise VTCError(
                    f"method: got {name_of(methods)!r}, but {other.name!r} and {method.name!r} both "
                    f"work at the same place ({method.where}), where a plan has one method"
                )
