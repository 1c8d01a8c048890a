"""Runners of the `rivals` golden vectors, a module a kind of method; `tests/golden.py` merges `RUNNERS`.

Every module has a `RUNNERS` of its own: prefix of the cases -> function of a case.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

RUNNERS: dict[str, Callable[[Any], None]] = {}
for _module in iter_modules(__path__):
    RUNNERS |= getattr(import_module(f"{__name__}.{_module.name}"), "RUNNERS", {})
