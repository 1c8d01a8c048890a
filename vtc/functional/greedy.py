"""What greedy methods make of features before they pick: cosines, ranges, cover."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.kernels._gram import gram


def cosines(rows: Tensor, valid: Tensor, others: Tensor | None = None) -> Tensor:
    """Float32 `[P, N, M]`: cosines of rows `[P, N, D]` with `others` `[P, M, D]`, or with each other; 0
    for rows that are not `valid` `[P, N]`."""
    unit = torch.where(valid[..., None], normalize(rows.float(), dim=-1), 0)
    return gram(unit) if others is None else unit @ normalize(others.float(), dim=-1).mT


def unit_range(values: Tensor, valid: Tensor, low: float = 0.0, high: float = 0.0) -> Tensor:
    """`(x - min + low) / (max - min + high)` of every row's valid values, 0 elsewhere.

    Args:
        values: `[B, N]`.
        valid: bool `[B, N]`.
        low, high: what keeps values off 0 and the range off nothing; a row without range is 1 where
            both are 0.
    """
    least = values.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    range_ = values.masked_fill(~valid, -torch.inf).amax(1, keepdim=True) - least + high
    none = range_ <= 0
    scaled = (values - least + low) / range_.masked_fill(none, 1)
    return torch.where(none, 1.0, scaled).masked_fill(~valid, 0)


def mean_cosine(rows: Tensor, texts: Tensor, real: Tensor) -> Tensor:
    """Float32 `[S, N]`: mean cosine of rows `[S, N, D]` with the texts `[S, M, D]` that are `real`
    `[S, M]`; 0 where there is none."""
    one = (normalize(texts.float(), dim=-1) * real[..., None]).sum(1)  # cosines are linear in it
    one = one / real.sum(1, keepdim=True).clamp(min=1)
    return (normalize(rows.float(), dim=-1) @ one[..., None]).squeeze(-1)


def shares_of(others: Tensor, rows: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Float32 `[P, N, M]`: how each of `others` `[P, M, D]` divides itself among the rows `[P, N, D]`,
    by a softmax of cosines over the valid ones `[P, N]`."""
    close = normalize(rows.float(), dim=-1) @ normalize(others.float(), dim=-1).mT
    least = torch.finfo(close.dtype).min
    return (close / temperature).masked_fill(~valid[..., None], least).softmax(1)
