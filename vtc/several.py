"""Several methods in one plan, each at a place of its own; by name `"a+b"`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vtc.errors import VTCError
from vtc.registry import method_class

if TYPE_CHECKING:
    from vtc.methods.base import Method

#: places of methods that have one budget between them
_SHARE = ("pixels", "boundary")


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


def in_front(names: Sequence[str]) -> str | None:
    """Of several methods by name, the one that makes pictures smaller, which has the budget of the plan;
    None where none does.

    Raises:
        VTCError: a name that no method has.
    """
    if len(names) < 2:
        return None
    return next((name for name in names if method_class(name).where == "pixels"), None)


def settled(methods: Sequence[Method]) -> list[Method]:
    """The methods of a plan, `check_places`, with one budget for a method that makes pictures smaller
    and the one in front of the language model: what is left behind both.

    Raises:
        VTCError: see `check_places`, or the two are given different budgets.
    """
    check_places(methods)
    sharing = [m for m in methods if m.where in _SHARE]
    if len(sharing) < 2:
        return list(methods)
    budgets = [(m.retention, m.tokens) for m in sharing]
    given = [each for each in budgets if each != (None, None)] or [budgets[0]]
    if given[0] != given[-1]:
        said = " and ".join(f"{m.retention or m.tokens} for {m.name!r}" for m in sharing)
        raise VTCError(
            f"retention: got {said}, but the two share one budget, what is left at the end; give it once"
        )
    retention, tokens = given[0]
    return [
        replace(m, retention=retention, tokens=tokens) if m.where in _SHARE else m for m in methods
    ]
