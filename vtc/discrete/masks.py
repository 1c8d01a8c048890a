"""Attention masks as pure functions: bool `[queries, keys]`, True where a query may attend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.discrete.noise import Noise
from vtc.errors import VTCError


def full(count: int) -> Tensor:
    """Everyone sees everyone."""
    return torch.ones(count, count, dtype=torch.bool)


def causal(count: int) -> Tensor:
    """Position i sees positions 0..i."""
    return full(count).tril()


def block_causal(sizes: Sequence[int]) -> Tensor:
    """Groups of the given sizes: a position sees its own group whole and all earlier groups."""
    if not sizes or min(sizes) < 1:
        raise VTCError(f"sizes: got {tuple(sizes)}, every group needs at least one position")
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return group.unsqueeze(1) >= group.unsqueeze(0)


def causal_queries(queries: int, others: int, others_see_queries: bool = False) -> Tensor:
    """`[queries | others]`: queries are causal among themselves and see all others.

    Args:
        queries: learned queries, placed first.
        others: image patches or text, placed behind.
        others_see_queries: whether the others see the queries as well. In a stack of layers this
            has to be False, or a query would read later ones by way of the others.
    """
    mask = full(queries + others)
    mask[:queries, :queries] = causal(queries)
    mask[queries:, :queries] = others_see_queries
    return mask


def with_prefix(mask: Tensor, prefix: int) -> Tensor:
    """`prefix` extra keys in front of a mask that every query sees: `[Q, prefix + K]`."""
    return torch.cat([mask.new_ones(mask.shape[0], prefix), mask], dim=1)


def next_all(count: int, cut: int, strict: bool = True) -> Tensor:
    """Predict everything behind a prefix of `cut` positions (TokenUnify, arXiv 2405.16847).

    Everyone sees the prefix; behind it a position sees itself alone (`strict`), so that the
    predictions are conditionally independent, or everyone.
    """
    if not 0 <= cut <= count:
        raise VTCError(f"cut: got {cut}, allowed are 0 to {count}")
    if not strict:
        return full(count)
    mask = torch.eye(count, dtype=torch.bool)
    mask[:, :cut] = True
    return mask


def random_mask(batch: int, count: int, masked: Sequence[int] | Tensor, noise: Noise) -> Tensor:
    """Bool `[batch, count]`, True at `masked[b]` random positions of row b."""
    scores = noise.uniform((batch, count), torch.empty(0))
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return rank < torch.as_tensor(masked).reshape(-1, 1)


def allow_padding(mask: Tensor, keys_valid: Tensor) -> Tensor:
    """Hide padded keys of each row: `[Q, K]` and `[B, K]` to `[B, 1, Q, K]` for attention."""
    return (mask & keys_valid.bool().unsqueeze(1)).unsqueeze(1)
