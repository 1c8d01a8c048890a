"""`Proportional`: merged tokens that are attended to by as many patches as they stand for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from vtc.methods import _fields
from vtc.methods.base import Method


@dataclass
class Proportional(Method):
    """A method that merges patches, and can have attention count what a token stands for.

    The logarithm of a token's weight, the number of patches that were merged into it, is added to the
    logits of all attention to it, in every layer of the language model and in every step. So a token
    is attended to as all of its patches would be if they were alike. "Proportional attention" of ToMe
    (2210.09461), there inside of a vision tower.

    Attributes:
        proportional: False. Whether attention is proportional. Needs eager attention or SDPA.
    """

    proportional: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.flag("proportional", self.proportional)

    @property
    def weighs(self) -> bool:
        return self.proportional
