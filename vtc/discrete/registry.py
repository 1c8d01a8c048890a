"""Look-up by name with the errors of `vtc.registry`: what is unknown, what there is, what is near."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vtc.errors import VTCError, nearest

T = TypeVar("T")


def names(table: Mapping[str, Any], pattern: str = "*") -> list[str]:
    """Names of a table that match a glob, sorted."""
    return sorted(fnmatch.filter(table, pattern))


def call(table: Mapping[str, Callable[..., T]], what: str, name: str, **options: Any) -> T:
    """Call the entry `name` with `options`.

    Raises:
        VTCError: the name or an option is unknown, or a needed option is missing.
    """
    if name not in table:
        raise VTCError(
            f"{what}: got {name!r}, available are {', '.join(sorted(table))}{nearest(name, table)}"
        )
    parameters = inspect.signature(table[name]).parameters
    for option in options:
        if option not in parameters:
            raise VTCError(
                f"{option}: {name!r} has no such option, it takes {', '.join(parameters)}"
                f"{nearest(option, parameters)}"
            )
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty and key not in options
    ]
    if missing:
        raise VTCError(f"{missing[0]}: {name!r} needs it")
    return table[name](**options)
