"""Random: the baseline that looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vtc.functional.sampling import image_generator
from vtc.methods import _fields
from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.tokens import CompressedTokens, VisualTokens, keep_patches


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

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        generator = image_generator(self.seed, tokens.content_seed)
        drawn = torch.randperm(tokens.num_patches, generator=generator)[: self.budget(tokens)]
        tile, patch = tokens.valid.nonzero(as_tuple=True)
        keep = torch.zeros_like(tokens.valid)
        keep[tile[drawn], patch[drawn]] = True
        return keep_patches(tokens, keep)
