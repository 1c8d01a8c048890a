"""What is left of the pictures of a call that were made smaller, and who makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vtc.packing import Packing
from vtc.plugins.model.inputs import Inputs
from vtc.plugins.model.smaller.choose import Choice
from vtc.plugins.model.units import Unit


@dataclass
class Smaller:
    """The images or clips of a call at their new sizes.

    Attributes:
        full: each at the size that the processor gave it.
        units: each at its new size; the very same object where that is the old one.
        kwargs: the inputs that change, by name.
        seats: of each, int64 `[L]` rising: the placeholder, counted within its old ones, that each of
            its new tokens takes.
        gone: flat indices `b * L + i` of text in the prompts that goes with what is gone, such as the
            break behind a row of tokens.
    """

    full: list[Unit]
    units: list[Unit]
    kwargs: dict[str, Any]
    seats: list[Tensor]
    gone: list[int] = field(default_factory=list)

    def changed(self, index: int) -> bool:
        """Whether an image has another size than before."""
        return self.units[index] is not self.full[index]


class Resizer(Protocol):
    """How the pictures of a family are made smaller."""

    def choices(self, inputs: Inputs, unit: Unit) -> list[Choice]:
        """The sizes that its processor can make of a picture, the fewest patch tokens first; the last
        one leaves it as it is."""

    def make(self, inputs: Inputs, units: list[Unit], chosen: Sequence[Choice | None]) -> Smaller:
        """The pictures at the chosen sizes, None for those that stay as they are."""


def seats(full: Packing, small: Packing) -> Tensor:
    """Int64 `[L]`: the old placeholder that each new token takes; those of a frame stay in it."""
    frames = full.frames
    old, new = full.length // frames, small.length // frames
    return (torch.arange(frames)[:, None] * old + torch.arange(new) * old // max(new, 1)).flatten()
