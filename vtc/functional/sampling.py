"""Random draws that belong to an image and not to its place in a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: seeds 0, 1, 2, ... land far apart
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def image_noise(seed: int, content_seeds: Sequence[int], size: int, device: torch.device) -> Tensor:
    """Numbers in (0, 1), evenly distributed, that depend on nothing but seed, image and place.

    The n-th number of an image is the n-th output of the SplitMix64 generator (Steele, Lea and
    Flood, 2014) started at a mixture of both seeds. All come from the same few operations, on any
    device alike.

    Args:
        seed: of the user.
        content_seeds: of each image, a hash of its pixels.
        size: numbers wanted of each.
        device: where they are wanted.

    Returns:
        Float32 `[B, size]`, multiples of 2**-24 moved by half of that.
    """
    keys = torch.tensor([_signed(seed * _STEP + content) for content in content_seeds])
    keys = keys.to(device, non_blocking=True)
    bits = keys[:, None] + torch.arange(1, size + 1, device=device) * _signed(_STEP)
    bits = (bits ^ _shift(bits, 30)) * _signed(_FIRST)
    bits = (bits ^ _shift(bits, 27)) * _signed(_SECOND)
    bits = _shift(bits ^ _shift(bits, 31), 40)
    return (bits.float() + 0.5) * 2.0**-24


def exponential_race(weights: Tensor, noise: Tensor) -> Tensor:
    """Keys whose m largest are a sample without replacement with probabilities `weights`.

    `weights / noise` with `noise` drawn from Exp(1): the law of `torch.multinomial` without
    replacement, but with the draw as an input (Efraimidis and Spirakis, 2006).

    Args:
        weights: `[..., N]`, not negative, any scale.
        noise: `[..., N]`, positive.
    """
    return weights / noise.clamp(min=torch.finfo(noise.dtype).tiny)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Shift right with zeros moving in."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
