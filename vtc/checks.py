"""How closely results are looked at.

A look at values on a GPU makes the host wait for all that is queued there. So everything is looked at
for the first batch of a shape, and always with `VTC_CHECK=1`. Later batches are looked at on the CPU
alone, where it costs little, and there what was put together by `vtc` itself and left as it was is
taken to be right.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from vtc.errors import VTCError

VARIABLE = "VTC_CHECK"


def thorough(*key: Any) -> bool:
    """Whether everything is to be looked at: with `VTC_CHECK=1`, and until `key` has `passed`.

    Raises:
        VTCError: `VTC_CHECK` is neither 0 nor 1.
    """
    setting = os.environ.get(VARIABLE, "")
    if setting not in ("", "0", "1"):
        raise VTCError(f"{VARIABLE}: got {setting!r}, allowed are 0, 1 or nothing")
    return setting == "1" or not _state(key)


def passed(*key: Any) -> None:
    """Everything was looked at, and was right."""
    state = _state(key)
    if not state:
        state.append(True)


@lru_cache(maxsize=512)
def _state(key: tuple[Any, ...]) -> list[bool]:
    """Empty until the key has passed."""
    return []
