"""What a check says, and what becomes of whatever it raises."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from vtc.errors import VTCError


class Found(NamedTuple):
    """What a check found.

    Attributes:
        text: in words.
        apart: how far logits were apart, where that was measured.
    """

    text: str
    apart: float | None = None


class Differs(Exception):
    """Two runs that have to agree do not.

    Args:
        text, apart: as in `Found`.
    """

    def __init__(self, text: str, apart: float | None = None) -> None:
        super().__init__(text)
        self.found = Found(text, apart)


class NotRun(Exception):
    """The check cannot be made here; the message says why."""


@dataclass
class Outcome:
    """What one check said of one subject.

    Attributes:
        check: name of the check.
        subject: name of the model, or of a part of the installation.
        status: `"ok"`, `"failed"` or `"not run"`.
        detail: the numbers, or the reason.
        apart: how far logits were apart, as a share of their spread, where that was measured.
        seconds: how long it took.
    """

    check: str
    subject: str
    status: str
    detail: str = ""
    apart: float | None = None
    seconds: float = 0.0


def outcome(check: str, subject: str, function: Callable[[], Found]) -> Outcome:
    """Run one check; whatever it raises becomes its outcome."""
    start = time.perf_counter()
    try:
        status, found = "ok", function()
    except NotRun as reason:
        status, found = "not run", Found(str(reason))
    except Differs as difference:
        status, found = "failed", difference.found
    except VTCError as error:
        status, found = "failed", Found(first_line(error))
    except Exception as error:  # a check that fails must not keep the others from running
        status, found = "failed", Found(f"{type(error).__name__}: {first_line(error)}")
    text, apart = found
    apart = apart if apart is not None and math.isfinite(apart) else None  # for JSON
    return Outcome(check, subject, status, text, apart, time.perf_counter() - start)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
