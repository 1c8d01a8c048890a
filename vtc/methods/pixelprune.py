"""PixelPrune: tokens whose pixels follow from their neighbours'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.ragged import to_host
from vtc.kernels.pixel_surprise import pixel_surprise
from vtc.methods import _fields
from vtc.methods.scored import Scored
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import SignalRequest


@register_method
@dataclass
class PixelPrune(Scored):
    """Drops tokens whose pixels the tokens at their left and above predict: blank paper, flat colour.

    Nothing is judged but pixels: no attention, no features, no question. What is dropped looks the same
    as a token that stays, so that at `tau` 0 no pixel is lost.

    Budget: `retention=None` drops what is predicted within `tau`, half of a page or none of a photo.
    With a number, the patches stay that are farthest from their prediction, of all tiles [ours].

    Published as a step in front of the vision tower, which it saves as well: `before="tower"`, on Qwen.
    By default it is the same decision behind the tower, which saves the language model alone, works with
    any tower, and leaves the features of what stays as they were. Every tile and frame is predicted by
    itself, and padding predicts nothing.

    Paper: "PixelPrune" (arXiv 2604.00886).
    Code: OPPO-Mente-Lab/PixelPrune at a870e31 (Apache-2.0); written from the maths.

    Attributes:
        tau: 0.0. The largest difference of a pixel value, from 0 to 1, that still counts as predicted
            [code]. Above 0 neighbours count as they would be rebuilt, so that errors do not add up, and
            the diagonals of a tile follow each other.
        before: "language". What the tokens are dropped in front of: the "language" model; or the vision
            "tower", as published, which then encodes nothing but the patches of what is left, each at
            its place in the picture. They do not see what is dropped, so that their features differ from
            those of the whole picture. Qwen alone.
    """

    tau: float = 0.0
    before: str = "language"

    name: ClassVar[str] = "pixelprune"
    paper: ClassVar[str] = "arXiv 2604.00886"
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.number("tau", self.tau, 0, 1)
        _fields.one_of("before", self.before, ("language", "tower"))

    @property
    def early(self) -> bool:
        return self.before == "tower"

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        return {"pixels": SignalRequest("pixels")}

    def score(self, batch: ImageBatch) -> Tensor:
        pixels, valid = batch.signal("pixels"), batch.tables.valid
        return pixel_surprise(pixels, valid, batch.patch_grid, self.tau)

    def select(self, batch: ImageBatch) -> Selection:
        if not self.counts_itself:
            return super().select(batch)
        keep = batch.tables.valid & (self.score(batch) > self.tau)
        return batch.keep(keep, batch.per_image(to_host(keep.sum(1)).tolist()))
