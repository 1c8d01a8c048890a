"""Checks of hyper-parameters, so that all methods word their errors alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from vtc.errors import VTCError, nearest


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """`value` is one of `allowed`."""
    if value not in allowed:
        hint = nearest(value, allowed) if isinstance(value, str) else ""
        raise VTCError(f"{name}: got {value!r}, allowed are {', '.join(allowed)}{hint}")


def flag(name: str, value: Any) -> None:
    """`value` is True or False."""
    if not isinstance(value, bool):
        raise VTCError(f"{name}: got {value!r}, allowed are True and False")


def whole(name: str, value: Any, least: int) -> None:
    """`value` is an int of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise VTCError(f"{name}: got {value!r}, allowed are whole numbers >= {least}")


def number(name: str, value: Any, low: float, high: float = float("inf")) -> None:
    """`value` is a finite number from `low` to `high`."""
    good = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high:
        span = f">= {low}" if high == float("inf") else f"from {low} to {high}"
        raise VTCError(f"{name}: got {value!r}, allowed are numbers {span}")


def share(name: str, value: Any) -> None:
    """`value` is a number in (0, 1]."""
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not good or not 0 < value <= 1:
        raise VTCError(f"{name}: got {value!r}, allowed are numbers in (0, 1]")


def layer(name: str, value: Any) -> None:
    """`value` names an encoder layer: an int, a share of the depth in (0, 1), or "read"."""
    if value == "read":
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise VTCError(f"{name}: got {value!r}, allowed are an int, a number in (0, 1) and 'read'")
    if isinstance(value, float) and not 0 < value < 1:
        raise VTCError(f"{name}: got {value!r}, allowed are an int, a number in (0, 1) and 'read'")


def rising(name: str, value: Any, least: int, number: int) -> None:
    """`value` is a list of `number` rising ints, the first at least `least`."""
    good = isinstance(value, (list, tuple)) and len(value) == number
    good = good and all(isinstance(x, Integral) and not isinstance(x, bool) for x in value)
    if not good or value[0] < least or any(a >= b for a, b in zip(value, value[1:], strict=False)):
        raise VTCError(
            f"{name}: got {value!r}, allowed are {number} rising whole numbers >= {least}"
        )
