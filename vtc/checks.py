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
    """Whether everything is to be looked at: with `VTC_CHECK=1`, and the first time `key` is seen.

    Raises:
        VTCError: `VTC_CHECK` is neither 0 nor 1.
    """
    setting = os.environ.get(VARIABLE, "")
    if setting not in ("", "0", "1"):
        raise VTCError(f"{VARIABLE}: got {setting!r}, allowed are 0, 1 or nothing")
    new = _new(key)
    first, new[0] = new[0], False
    return first or setting == "1"


@lru_cache(maxsize=512)
def _new(key: tuple[Any, ...]) -> list[bool]:
    """One True for every key, until `thorough` takes it."""
    return [True]
