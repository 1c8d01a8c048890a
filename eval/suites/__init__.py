"""Benchmarks by name: those of the files here, of installed packages, and registered ones."""

from __future__ import annotations

from typing import Any, TypeVar

from vtc import doors, registry
from vtc.eval.suites.base import Item, Suite

__all__ = ["Item", "Suite", "create_suite", "list_suites", "register_suite", "suite_class"]

S = TypeVar("S", bound="type[Suite]")
_SUITES: registry.Classes[type[Suite]] = registry.Classes(
    "vtc.eval.suites", doors.SUITES, "vtc.eval.suites.base:Suite"
)


def register_suite(cls: S) -> S:
    """Class decorator: make a `Suite` available under its `name`.

    Raises:
        VTCError: the class has no name, or the name belongs to another class.
    """
    _SUITES.add(cls)
    return cls


def list_suites(pattern: str = "*") -> list[str]:
    """Names of the suites that match a glob, sorted."""
    return doors.usable(doors.SUITES, _SUITES, registry.names(_SUITES, pattern))


def suite_class(name: str) -> type[Suite]:
    """The class of the suite called `name`.

    Raises:
        VTCError: unknown suite.
    """
    return registry.entry(_SUITES, "suite", name)


def create_suite(name: str, **options: Any) -> Suite:
    """The suite called `name`; `options` are its dataclass fields.

    Raises:
        VTCError: unknown suite or option, or a value out of range.
    """
    return registry.create(_SUITES, "suite", name, **options)
