"""The maths of token-level correlation-guided compression.

Source: "Token-level Correlation-guided Compression" (arXiv 2407.14439). No code was published; the
formulas are this project's reading of the figure and of summaries. T tiles, N patches a tile; all
functions take a mask of the patches that are not padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.kernels.neighbour_count import neighbour_count

__all__ = [
    "attention_over_patches",
    "iqr_fence",
    "neighbour_count",
    "redundant_patches",
    "sampling_number",
]


def redundant_patches(count: Tensor, beta: float, valid: Tensor) -> Tensor:
    """Bool `[T, N]`: valid patches with more than `beta * (n - 1)` look-alikes among their n - 1
    fellows.

    Args:
        count: int64 `[T, N]`, from `neighbour_count`.
        beta: share of the fellows, strict.
        valid: bool `[T, N]`.
    """
    # floor() in float64 on the CPU: a count above x is a count above floor(x), whatever the device
    fellows = (valid.sum(1).cpu().double() - 1).clamp(min=0)
    limit = torch.floor(beta * fellows).long().to(count.device)
    return (count > limit[:, None]) & valid


def sampling_number(redundant: Tensor, valid: Tensor) -> Tensor:
    """Int64 `[T]`: tokens to draw, the information density times n, at least 1 (0 without patches).

    The density is the share of patches that are not redundant, so the product is a count already.
    """
    total = valid.sum(1)
    return torch.minimum((total - redundant.sum(1)).clamp(min=1), total)


def iqr_fence(values: Tensor, valid: Tensor, factor: float = 1.5) -> Tensor:
    """Float32 `[T, 3]`: both quartiles and the upper outlier fence `Q3 + factor * (Q3 - Q1)`.

    Quartiles are interpolated linearly; rows without valid entries give NaN.
    """
    known = values.float().masked_fill(~valid, torch.nan)
    quartile = torch.nanquantile(known, known.new_tensor([0.25, 0.75]), dim=-1)
    low, high = quartile[0], quartile[1]
    return torch.stack([low, high, high + factor * (high - low)], -1)


def attention_over_patches(attention: Tensor, valid: Tensor) -> Tensor:
    """Float32 `[T, N]`: attention as a distribution over the valid patches of each tile.

    The CLS column is gone and padding with it, so each row is divided by its sum.
    """
    kept = attention.float().masked_fill(~valid, 0)
    return kept / kept.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
