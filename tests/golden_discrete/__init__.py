"""Runners of the `discrete` golden vectors, a module a system; `tests/golden.py` merges `RUNNERS`.

A runner reads `in.*` and `w.*`, runs the public functions, and returns what came out by the name of
the expected tensor. Sizes come from the JSON and from the shapes of inputs and weights. What
official code does against its own maths is repeated here, in the adapters, and nowhere in the
library.
"""

from tests.golden_discrete import elm, instella, read, seed, tokenunify, xar  # noqa: F401
from tests.golden_discrete.common import RUNNERS

__all__ = ["RUNNERS"]
