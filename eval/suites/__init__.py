"""Benchmarks by name: every module here that defines a `Suite` with a name adds it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from vtc import registry
from vtc.eval.suites.base import Item, Suite

__all__ = ["Item", "Suite", "create_suite", "list_suites", "suite_class"]


@cache
def _load() -> dict[str, type[Suite]]:
    found = {}
    for module in pkgutil.iter_modules(__path__):
        members = vars(importlib.import_module(f"{__name__}.{module.name}")).values()
        for member in members:
            if inspect.isclass(member) and issubclass(member, Suite) and hasattr(member, "name"):
                registry.put(found, "suite", member.name, member)
    return found


def list_suites(pattern: str = "*") -> list[str]:
    """Names of the suites that match a glob, sorted."""
    return registry.names(_load(), pattern)


def suite_class(name: str) -> type[Suite]:
    """The class of the suite called `name`.

    Raises:
        VTCError: unknown suite.
    """
    return registry.entry(_load(), "suite", name)


def create_suite(name: str, **options: Any) -> Suite:
    """The suite called `name`; `options` are its dataclass fields.

    Raises:
        VTCError: unknown suite or option, or a value out of range.
    """
    return registry.create(_load(), "suite", name, **options)
