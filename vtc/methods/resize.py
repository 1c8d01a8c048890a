"""Resize: fewer pixels instead of fewer tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from vtc.batch import ImageBatch
from vtc.errors import VTCError
from vtc.methods import _fields
from vtc.methods.base import Method
from vtc.packing import Packing
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import VisualTokens


@register_method
@dataclass
class Resize(Method):
    """Makes the picture smaller before the vision tower sees it, which saves the tower's time as well.

    The model gets what its processor makes of a smaller picture: the same patches, fewer of them, at the
    positions of a small picture. The baseline that published methods have to beat.

    Budget: as many patch tokens as the family can make that are no more than asked for. Qwen and
    Pixtral have grids of any size; LLaVA-NeXT, LLaVA-OneVision and InternVL have fewer crops beside
    the thumbnail, or it alone, so only a few counts, and a budget below the smallest of them is an
    error that names them. A clip keeps its frames. Families that bring every picture to one size are
    refused.

    A method may follow, `"resize+divprune"`: the budget is what is left at the end, `share` says how
    much of the saving is made here, and what no size of the picture fits, the method behind sees to.

    Bicubic, each new pixel weighing the old ones that it covers. The picture has been resized once by
    the processor already, so pixels differ by rounding from those of a picture that was made small at
    once. The smallest pictures that a processor makes by itself are no bound here.

    Attributes:
        share: 0.5. In front of another method, how much of the saving is made here: the picture is left
            with N (K / N) ** share patch tokens, of N, for a budget of K. 0 leaves it as it is, 1 leaves
            nothing to do behind.
    """

    share: float = 0.5

    name: ClassVar[str] = "resize"
    where: ClassVar[Literal["pixels", "boundary", "layers"]] = "pixels"

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.number("share", self.share, 0, 1)

    def select(self, batch: ImageBatch) -> Selection:
        raise VTCError("method: 'resize' works on pixels, and tokens have none; put it on a model")

    def length(self, image: Packing | VisualTokens) -> int | None:
        """The tokens of an image that stays as it is; of others the family's grids decide."""
        packing = image if isinstance(image, Packing) else image.packing
        return packing.length if self.is_identity(packing) else None

    def target(self, image: Packing) -> int:
        """Patch tokens that a picture is left with at most where another method follows.

        Args:
            image: the picture as its processor made it.
        """
        kept, every = self.budget(image), image.patches
        return max(kept, math.floor(every * (kept / max(every, 1)) ** self.share + 1e-9))
