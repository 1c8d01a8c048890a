"""Attention that each key receives, averaged over queries and heads: a score without a CLS token.

The L x L probabilities are made for one block of queries at a time and reduced at once, so the extra
memory is B * H * block * L floats instead of B * H * L * L.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention_received(query: Tensor, keys: Tensor, scale: float, block: int = 128) -> Tensor:
    """Column means of the softmax attention matrix.

    Args:
        query: `[B, H, L, d]`.
        keys: `[B, H, L, d]`.
        scale: factor on the logits, normally `d ** -0.5`.
        block: queries handled at a time.

    Returns:
        Float32 `[B, L]`, non-negative, each row sums to 1.
    """
    batch, heads, length, _ = query.shape
    transposed = keys.float().transpose(-1, -2)
    total = torch.zeros(batch, keys.shape[2], device=query.device)
    for rows in query.split(block, dim=2):
        total += torch.softmax((rows.float() * scale) @ transposed, dim=-1).sum((1, 2))
    return total / (heads * length)
