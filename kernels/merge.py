"""Weighted sums of rows: how merged tokens are made of their sources."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_merge(
    values: Tensor, output: Tensor, source: Tensor, weight: Tensor, num_outputs: int
) -> Tensor:
    """`out[output[e]] += weight[e] * values[source[e]]` over all entries e.

    Args:
        values: `[S, ...]`; sums run in float32 (float64 stays).
        output: int64 `[K]`, row of the result.
        source: int64 `[K]`, row of `values`.
        weight: float `[K]`.
        num_outputs: M; a row without entries is zero.

    Returns:
        `[M, ...]` in the dtype of `values` (float32 for whole numbers). On a GPU the order of the
        additions is free, so that the last bits of rows with many entries may vary.

    Bytes: reads `K` rows of `values`, writes `M`.
    """
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    scaled = values[source].to(wide) * weight.to(wide).reshape(-1, *[1] * (values.dim() - 1))
    out = scaled.new_zeros(num_outputs, *values.shape[1:]).index_add(0, output, scaled)
    return out.to(values.dtype) if values.is_floating_point() else out
