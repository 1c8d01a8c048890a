"""How closely results are looked at.

On the CPU a look at values costs little: every batch is looked at, but for what `vtc` itself put
together, looked at then, and nobody wrote to since. A look at values on a GPU makes the host wait for
all that is queued there, so the first batch of a shape is looked at, all of it. With `VTC_CHECK=1` every
batch is, all of it, anywhere.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from vtc.errors import VTCError

VARIABLE = "VTC_CHECK"


def always() -> bool:
    """Whether `VTC_CHECK=1` is set.

    Raises:
        VTCError: `VTC_CHECK` is neither 0 nor 1.
    """
    setting = os.environ.get(VARIABLE, "")
    if setting not in ("", "0", "1"):
        raise VTCError(f"{VARIABLE}: got {setting!r}, allowed are 0, 1 or nothing")
    return setting == "1"


def thorough(*key: Any) -> bool:
    """Whether to look at what is on a GPU: until `key` has `passed`, or always."""
    return always() or not _state(key)


def passed(*key: Any) -> None:
    """Everything was looked at, and was right."""
    state = _state(key)
    if not state:
        state.append(True)


@lru_cache(maxsize=512)
def _state(key: tuple[Any, ...]) -> list[bool]:
    """Empty until the key has passed."""
    return []
