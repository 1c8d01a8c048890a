"""Which of the sizes that a processor can make of a picture goes with a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vtc.errors import VTCError

#: reachable counts that a message lists one by one
_LISTED = 8


@dataclass(frozen=True)
class Choice:
    """A size that the family's processor can make of a picture.

    Attributes:
        patches: patch tokens that the picture then has.
        size: what tells it from the others of the family, a grid of tokens or of crops, or pixels.
    """

    patches: int
    size: tuple[int, int]


def grids(grid: tuple[int, int], frames: int = 1) -> list[Choice]:
    """The grids of a picture whose sides may have any number of tokens, `grid` the last of them.

    Each has the shape of the picture up to one row or column, as rounding leaves it.
    """
    rows, cols = grid
    found = set()
    for one in range(1, rows + 1):
        found |= {(one, other) for other in _beside(one * cols / rows, cols)}
    for one in range(1, cols + 1):
        found |= {(other, one) for other in _beside(one * rows / cols, rows)}

    def near(size: tuple[int, int]) -> tuple[int, float]:
        shape = size[0] * cols / (size[1] * rows)
        return size[0] * size[1], -max(shape, 1 / shape)

    return [Choice(size[0] * size[1] * frames, size) for size in sorted(found, key=near)]


def _beside(extent: float, most: int) -> set[int]:
    """The whole numbers in [1, `most`] around an extent, one below and one above."""
    low = math.floor(extent + 1e-9)
    return {min(low + 1, most), low} if low else {1}


def choose(choices: Sequence[Choice], most: int, least: int | None = None) -> Choice:
    """The choice with the most patch tokens that are no more than `most`.

    Args:
        choices: in rising order; of equal counts the last is taken.
        least: what has to be left for a method behind; where nothing lies between the two, the next
            choice above `least` is taken. None where there is no such method.

    Raises:
        VTCError: all of them have more than `most`, and no method follows.
    """
    fits = [c for c in choices if (least or 1) <= c.patches <= most]
    if fits:
        return max(reversed(fits), key=lambda c: c.patches)
    if least is not None:
        return min((c for c in choices if c.patches >= least), key=lambda c: c.patches)
    counts = sorted({c.patches for c in choices})
    said = ", ".join(map(str, counts))
    if len(counts) > _LISTED:
        said = f"{counts[0]} to {counts[-1]}, as the shape of the picture allows"
    raise VTCError(
        f"retention: got a budget of {most} patch tokens for an image, but its processor makes no "
        f"picture so small; 'resize' can leave {said}, and a method behind it any number: 'resize+pool'"
    )
