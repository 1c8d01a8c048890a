"""Tokens of a row by groups: what methods inside the language model share.

A batch has B rows of S tokens, and each row up to G groups of tokens that compete with each other, its
images as a rule. Nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.functional.windows import rank_within
from vtc.layers import Seen


def best_of(score: Tensor, group: Tensor, counts: Tensor) -> Tensor:
    """Bool `[B, S]`: the tokens of the highest scores in each group; ties to the lower place.

    Args:
        score: `[B, S]`, compared in float32.
        group: long `[B, S]`, -1 for tokens that do not compete.
        counts: long `[B, G]`, how many of each group; all where there are fewer.
    """
    valid = group >= 0
    rank = rank_within(score, group, counts.shape[1], valid)
    return valid & (rank < of_group(counts, group))


def of_group(values: Tensor, group: Tensor) -> Tensor:
    """Values of groups `[B, G, ...]` for each token of `group` `[B, S]`; those of group 0 for tokens of
    none."""
    index = group.clamp(min=0)
    index = index.view(*index.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)


def tokens_of(group: Tensor, counts: Tensor) -> Tensor:
    """Long `[B, G]`: how many tokens of `group` `[B, S]` there are; `counts` `[B, G]` says how many
    groups."""
    out = counts.new_zeros(len(counts), counts.shape[1] + 1)
    slot = torch.where(group < 0, counts.shape[1], group)
    return out.scatter_add_(1, slot, torch.ones_like(slot))[:, :-1]


def places(rank: Tensor, group: Tensor, groups: int, size: int) -> Tensor:
    """Long `[B, groups, size]`: the column of the token of each rank in each group, -1 for none.

    Args:
        rank: long `[B, S]` within the group; ranks outside of [0, size) are left out.
        group: long `[B, S]`, -1 for tokens of none.
    """
    inside = (group >= 0) & (rank >= 0) & (rank < size)
    slot = torch.where(inside, group * size + rank, groups * size)
    column = torch.arange(rank.shape[1], device=rank.device).expand_as(rank)
    out = rank.new_full((len(rank), groups * size + 1), -1).scatter_(1, slot, column)
    return out[:, :-1].unflatten(1, (groups, size))


def question(seen: Seen) -> Tensor:
    """Bool `[B, S]`: the text behind the last image, as far as the first token that asks.

    What comes later are answers, under labels, or drafts.
    """
    column = torch.arange(seen.image.shape[1], device=seen.image.device)
    last = torch.where(seen.image >= 0, column, -1).amax(1, keepdim=True)
    ask = seen.asking.masked_fill(seen.asking < 0, len(column)).amin(1, keepdim=True)
    return seen.valid & (column > last) & (column <= ask)


def marked(columns: Tensor, size: int) -> Tensor:
    """Bool `[B, size]`: True in the `columns` `[B, R]`, of which -1 stands for none."""
    mask = columns.new_zeros(len(columns), size + 1, dtype=torch.bool)
    return mask.scatter_(1, torch.where(columns < 0, size, columns), True)[:, :-1]
