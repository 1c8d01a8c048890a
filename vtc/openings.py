"""Shares of the patch tokens by how a question begins: `{"how many": 0.7, "*": 0.12}`.

The first words say what kind of question it is, and kinds differ in what they need: a count wants
everything, the number on one sign a few patches. `vtc tune --by-question` fits such a table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

from vtc.errors import VTCError

#: every question that begins in none of the other ways
OTHERS = "*"
#: words that `opening` takes
COUNT = 2


def words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation."""
    return re.findall(r"[\w'’]+", text.lower())


def opening(text: str) -> str:
    """The first two words of a question."""
    return " ".join(words(text)[:COUNT])


def share_of(shares: Mapping[str, float], question: str) -> float:
    """The share of the longest opening that a question begins with, else that of `OTHERS`."""
    asked = words(question)
    for count in range(len(asked), 0, -1):
        share = shares.get(" ".join(asked[:count]))
        if share is not None:
            return share
    return shares[OTHERS]


def checked(shares: Mapping[Any, Any], where: str = "retention") -> dict[str, float]:
    """The table with its openings written as `words` reads them.

    Raises:
        VTCError: an opening without words or given twice, a share outside of (0, 1], or no `OTHERS`.
    """
    found: dict[str, float] = {}
    for name, share in shares.items():
        key = name if name == OTHERS else " ".join(words(name)) if isinstance(name, str) else ""
        if not key or key in found:
            problem = "which is there twice" if key else "allowed are the first words of a question"
            raise VTCError(f"{where}: got the opening {name!r}, {problem}")
        if not isinstance(share, Real) or isinstance(share, bool) or not 0 < float(share) <= 1:
            raise VTCError(f"{where}: got {share!r} for {name!r}, allowed are numbers in (0, 1]")
        found[key] = float(share)
    if OTHERS not in found:
        raise VTCError(
            f"{where}: got {found}, allowed are shares by question with one for {OTHERS!r}, all others"
        )
    return found
