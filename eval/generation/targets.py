"""What a generator makes of an image: the codes of a tokenizer, its latents, or patches of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.discrete import CodeSpace, ImageTokenizer
from vtc.errors import VTCError


@dataclass
class Codes:
    """Ids `[B, N, K]` of a tokenizer."""

    tokenizer: ImageTokenizer

    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` to what `Generator.loss` takes."""
        return self.tokenizer.encode(images).ids

    def decode(self, made: Tensor) -> Tensor:
        """What `Generator.sample` gives to images."""
        return self.tokenizer.decode(made)


@dataclass
class Latents:
    """What the decoder of a tokenizer reads, `[B, N, D]`, brought to mean 0 and variance 1."""

    tokenizer: ImageTokenizer
    mean: float = 0.0
    std: float = 1.0

    def encode(self, images: Tensor) -> Tensor:
        """See `Codes`."""
        return (self.tokenizer.encode(images).z - self.mean) / self.std

    def decode(self, made: Tensor) -> Tensor:
        """See `Codes`."""
        return self.tokenizer.decode(made * self.std + self.mean)


@dataclass
class Pixels:
    """Square patches `[B, N, C]`: of all colours, or of grey where C are as many as their pixels."""

    space: CodeSpace
    channels: int
    size: int

    def __post_init__(self) -> None:
        rows, cols = self.space.grid or (1, self.space.tokens)
        self.patch = self.size // cols
        area = self.patch**2
        if (rows * self.patch, cols * self.patch) != (self.size, self.size) or (
            self.channels not in (area, 3 * area)
        ):
            raise VTCError(
                f"generator.options: a grid of {rows} x {cols} with {self.channels} channels does "
                f"not fit {self.size} x {self.size} pixels"
            )

    def encode(self, images: Tensor) -> Tensor:
        """See `Codes`."""
        if self.channels == self.patch**2:
            images = images.mean(dim=1, keepdim=True)
        return F.pixel_unshuffle(images, self.patch).flatten(2).transpose(1, 2)

    def decode(self, made: Tensor) -> Tensor:
        """See `Codes`."""
        grid = made.transpose(1, 2).unflatten(2, self.space.grid)  # type: ignore[arg-type]
        return F.pixel_shuffle(grid, self.patch).expand(-1, 3, -1, -1)


Target = Codes | Latents | Pixels


def normalised(tokenizer: ImageTokenizer, images: Tensor) -> Latents:
    """`Latents` with the mean and deviation that these images have."""
    with torch.no_grad():
        z = tokenizer.encode(images).z
    return Latents(tokenizer, float(z.mean()), float(z.std()))
