"""A batch of sequences cut short in the middle of a model, and made long again behind it.

A long sequence has columns, a short one has places. Rows that keep different numbers end together, with
padding in front, so that the last place is everybody's last token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Cut(NamedTuple):
    """What is left of a batch of sequences.

    Attributes:
        places: int64 `[B, S]`, which places of the sequence in front of the cut are left.
        valid: bool `[B, S]`, False for padding.
        padded: whether there is padding.
    """

    places: Tensor
    valid: Tensor
    padded: bool


def cut(keep: Tensor) -> Cut:
    """What a cut leaves, on the CPU.

    Args:
        keep: bool `[B, S]`, on the CPU.
    """
    counts = keep.sum(1)
    most = int(counts.max())
    index = keep.long().argsort(dim=1, stable=True)[:, keep.shape[1] - most :]
    return Cut(index, keep.gather(1, index), bool((counts != most).any()))


def gathered(values: Tensor, index: Tensor, inner: int = 0) -> Tensor:
    """`values [..., B or 1, L, *inner]` at the places `index [B, S]`.

    Args:
        inner: how many axes stand behind that of the places.
    """
    axis = values.dim() - inner - 1
    lead, behind = values.shape[: axis - 1], values.shape[axis + 1 :]
    batch, left = index.shape
    values = values.expand(*lead, batch, *values.shape[axis:])
    where = index.to(values.device).view(*[1] * len(lead), batch, left, *[1] * inner)
    return values.gather(axis, where.expand(*lead, batch, left, *behind))


def long_again(index: Tensor, valid: Tensor, length: int) -> Tensor:
    """Int64 `[B, L]`: the place that each column of the long sequence reads behind the last layer.

    A column that is gone reads the one in front of it that is left, or the first that is.

    Args:
        index: `[B, S]`, the columns that are left.
        valid: bool `[B, S]`, padding in front.
        length: L.
    """
    left = torch.zeros(len(index), length, dtype=torch.long, device=index.device)
    left.scatter_add_(1, index, valid.long())
    gap = (~valid).sum(1, keepdim=True)
    return gap + (left.cumsum(1) - 1).clamp(min=0)


def asking_columns(
    valid: Tensor, labels: Tensor | None = None, shifted: bool = False, ignore: int = -100
) -> Tensor:
    """Int64 `[B, R]`, the columns of the tokens that ask, -1 where a row has fewer.

    That is the last real token of a row; under labels every token in front of an answer, last one
    first, and none in a row without answers.

    Args:
        valid: bool `[B, L]`.
        labels: `[B, L]`, of each column or, `shifted`, of the one behind it.
    """
    columns = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
    if labels is None:
        return torch.where(valid, columns, -1).amax(1, keepdim=True)
    told = labels.to(valid.device) != ignore
    none = torch.zeros_like(told[:, :1])
    if shifted:
        own, behind = torch.cat([none, told[:, :-1]], 1), told
    else:
        own, behind = told, torch.cat([told[:, 1:], none], 1)
    asks = behind & ~own & valid
    most = max(int(asks.sum(1).max()), 1)
    return torch.where(asks, columns, -1).sort(1, descending=True).values[:, :most]


def moved(columns: Tensor, keep: Tensor, valid: Tensor) -> Tensor:
    """Columns `[B, R]` of a sequence as places of what a cut leaves; -1 stays.

    A column that is gone is stood for by the one in front of it that is left, or the first that is.

    Args:
        keep: bool `[B, L]`, what is left of the sequence.
        valid: bool `[B, S]`, of what is left.
    """
    place = (~valid).sum(1, keepdim=True) + (keep.cumsum(1) - 1).clamp(min=0)
    return torch.where(columns >= 0, place.gather(1, columns.clamp(min=0)), -1)


def visible(
    rows: Tensor,
    valid: Tensor,
    past: int = 0,
    window: int | None = None,
    blocks: Tensor | None = None,
) -> Tensor:
    """Bool `[B, R, K]`: which keys some queries may see.

    Args:
        rows: int64 `[B, R]`, places of the queries behind `past`; -1 sees nothing.
        valid: bool `[B, K]`, False for padding, `past` keys of earlier turns in front.
        window: keys that a query sees at most, itself counted; None for all.
        blocks: int64 `[B, K]`, tokens of one block see each other; -1 for none.
    """
    here = (rows + past)[..., None]
    keys = torch.arange(valid.shape[1], device=valid.device)
    seen = keys <= here
    if blocks is not None:
        mine = blocks.gather(1, (rows + past).clamp(min=0))[..., None]
        seen = seen | ((blocks[:, None] == mine) & (mine >= 0))
    if window is not None:
        seen = seen & (keys > here - window)
    return seen & valid[:, None] & (rows >= 0)[..., None]
