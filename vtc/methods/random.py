"""Random: the baseline that looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.batch import ImageBatch
from vtc.methods import _fields
from vtc.methods.scored import Scored
from vtc.registry import register_method


@register_method
@dataclass
class Random(Scored):
    """Keeps patches drawn evenly from the whole image, without replacement; the budget exactly.

    The draw belongs to `seed` and the image's pixels: an image keeps the same patches alone, in a
    batch and at any place in it.

    Attributes:
        seed: 0. Another seed is another draw [ours].
    """

    seed: int = 0

    name: ClassVar[str] = "random"
    shown: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.whole("seed", self.seed, 0)

    def score(self, batch: ImageBatch) -> Tensor:
        return batch.noise(self.seed)
