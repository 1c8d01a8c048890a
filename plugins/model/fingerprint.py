"""A hash of what an image shows, so that random draws belong to the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.functional.ragged import cat_views, to_device, to_host

_ODD = -1640531535  # 2**32 over the golden ratio, as int32


def content_seeds(pixels: Sequence[Tensor]) -> list[int]:
    """One number from 0 to 2**62 for the pixels of each image, whatever else is in the batch.

    Sums of the pixels' float32 bit patterns times an odd number for each place, modulo 2**32 within a
    row of pixels and 2**64 over the rows: whole numbers, so that their order does not matter. Waits
    for the device once.

    Args:
        pixels: of each image `[rows, ...]`, alike behind the rows (tiles, or flattened patches).
    """
    rows = cat_views([each.detach().flatten(1) for each in pixels])
    bits = rows.float().contiguous().view(torch.int32)
    place = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=torch.int32)
    sums = (bits * (place * _ODD | 1)).sum(1, dtype=torch.int64)
    counts = torch.tensor([len(each) for each in pixels])
    image = torch.arange(len(pixels)).repeat_interleave(counts, output_size=len(rows))
    nth = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[image]
    nth, image = to_device(nth, rows), to_device(image, rows)
    mixed = (sums ^ (sums >> 29)) * (2 * nth + 3) * (_ODD | 1)
    total = torch.zeros(len(pixels), dtype=torch.int64, device=rows.device)
    return (to_host(total.index_add_(0, image, mixed)) & (2**62 - 1)).tolist()
