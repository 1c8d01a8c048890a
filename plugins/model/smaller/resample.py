"""Pictures at another size, as image processors make them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def resample(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """`[N, C, h, w]` at `size`: bicubic, each new pixel weighing all old ones that it covers.

    Normalising is linear and so is this, so that the order of the two does not matter but for rounding
    to 8 bits. A processor also cuts what overshoots black and white; here the extremes of each channel
    of a picture stand for them.
    """
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    wide = pictures.float()
    with torch.no_grad():
        low, high = wide.amin((-2, -1), keepdim=True), wide.amax((-2, -1), keepdim=True)
    out = nn.functional.interpolate(wide, size, mode="bicubic", antialias=True)
    return torch.maximum(torch.minimum(out, high), low).to(pictures.dtype)
