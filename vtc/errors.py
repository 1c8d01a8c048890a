"""The one exception that `vtc` raises for bad input."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VTCError(ValueError):
    """Bad input to `vtc`: names the argument, the value given and what is allowed.

    It is always raised before a model is changed, or after the model has been put back.
    """


def nearest(given: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the allowed name closest to `given`, or an empty string."""
    match = difflib.get_close_matches(str(given), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
