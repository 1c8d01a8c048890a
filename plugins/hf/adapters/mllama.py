"""Mllama (Llama 3.2 Vision): images are read by cross-attention, every tile with as many tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from vtc.plugins.hf.adapters.base import Adapter, Call, register_adapter
from vtc.plugins.hf.typing import Model

if TYPE_CHECKING:
    from vtc.methods.base import Method


@register_adapter("MllamaForConditionalGeneration", "MllamaModel")
class Mllama(Adapter):
    """The tower sees the tiles of an image as one sequence, each with a CLS token in front and padding
    behind. All its CLS tokens look at all tiles, so attention received is read in place of theirs."""

    stages: ClassVar[tuple[str, ...]] = ("cross_attention",)
    unstaged: ClassVar[str] = (
        "but this model reads images by cross-attention: no visual tokens stand among its text"
    )
    pads: ClassVar[bool] = True

    def has_cls(self, base: Model) -> bool:
        return False

    @property
    def irreplaceable(self) -> str:
        return "which comes behind what is compressed"

    def notes(self, base: Model, method: Method) -> list[str]:
        notes = super().notes(base, method)
        if method.tokens is not None:
            notes.append(
                "cross-attention reads as much of every tile: `tokens` is for each of them"
            )
        return notes

    def token_id(self, config: Any, modality: str) -> int | None:
        return config.image_token_index if modality == "image" else None

    def fuse(self, call: Call, values: Tensor) -> Tensor:
        tiles, real = len(call.kwargs["real"]), call.kwargs["real"]
        side = call.base.image_size // call.base.patch_size
        if len(values) == int(real.sum()) * (1 + side**2):  # of this image's tiles alone, unpadded
            return values.unflatten(0, (-1, 1 + side**2))[:, 1:].flatten(0, 1)
        padded = -(-(1 + side**2) // 8) * 8
        image = values.unflatten(0, (-1, tiles, padded))[call.kwargs["image"]]
        return image[real][:, 1 : 1 + side**2].flatten(0, 1)
