"""Random: the baseline that looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtc.batch import ImageBatch
from vtc.functional.ragged import send
from vtc.functional.sampling import image_noise
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods import _fields
from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.tokens import CompressedTokens


@register_method
@dataclass
class Random(Method):
    """Keeps patches drawn evenly from the whole image, without replacement; the budget exactly.

    The draw belongs to `seed` and the image's pixels: an image keeps the same patches alone, in a
    batch and at any place in it.

    Attributes:
        seed: 0. Another seed is another draw [ours].
    """

    seed: int = 0

    name: ClassVar[str] = "random"
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.whole("seed", self.seed, 0)

    def compress_batch(self, batch: ImageBatch) -> list[CompressedTokens]:
        valid = batch.rows(batch.tables.valid, False).flatten(1)
        seeds = [image.content_seed for image in batch.images]
        noise = image_noise(self.seed, seeds, valid.shape[1], valid.device)
        chosen = segmented_topk(noise, send(batch.budgets, noise), valid)[1]
        return batch.keep(batch.of_rows(chosen), batch.budgets)
