"""Random draws that belong to an image and not to its place in a batch."""

from __future__ import annotations

import torch
from torch import Tensor

_MIX = 0x9E3779B97F4A7C15  # odd, so that seeds 0, 1, 2, ... land far apart


def image_generator(seed: int, content_seed: int) -> torch.Generator:
    """A CPU generator fixed by the user's seed and a hash of the image's pixels."""
    mixed = (seed * _MIX + content_seed) % (1 << 63)
    return torch.Generator().manual_seed(mixed)


def exponential_race(weights: Tensor, noise: Tensor) -> Tensor:
    """Keys whose m largest are a sample without replacement with probabilities `weights`.

    `weights / noise` with `noise` drawn from Exp(1): the law of `torch.multinomial` without
    replacement, but with the draw as an input (Efraimidis and Spirakis, 2006).

    Args:
        weights: `[..., N]`, not negative, any scale.
        noise: `[..., N]`, positive.
    """
    return weights / noise.clamp(min=torch.finfo(noise.dtype).tiny)
