"""What signals are made of: where they come from, and the sums that no kernel does."""

from __future__ import annotations

import torch
from torch import Tensor

#: signals that come from hidden states of the tower, and from the question, not from attention
HIDDEN = frozenset({"last_hidden", "patch_embedding"})
TEXT = frozenset({"text_embedding", "text_similarity"})


def masked_attention_received(
    query: Tensor, key: Tensor, scale: float, mask: Tensor, block: int = 128
) -> Tensor:
    """`kernels.attention_received` where queries do not see all keys: padding, several images.

    Every key gets the mean over the queries that see it; a key that nobody sees, not even itself
    (padding), gets 0 and its query is left out.

    Args:
        query, key: `[B, H, L, d]`.
        scale: factor on the logits.
        mask: `[B, L]`, or `[B, 1, L, L]`, True or 0.0 where attention is allowed.
        block: queries handled at a time.

    Returns:
        Float32 `[B, L]`.
    """
    batch, heads, length, _ = query.shape
    if mask.dim() == 2:
        mask = mask[:, None, None, :].bool()
    allowed = mask if mask.dtype == torch.bool else mask == 0
    allowed = allowed.expand(batch, 1, length, length)
    real = allowed[:, 0].diagonal(dim1=1, dim2=2)  # [B, L]
    total = torch.zeros(batch, length, device=query.device)
    for start in range(0, length, block):
        rows = slice(start, start + block)
        logits = (query[:, :, rows].float() * scale) @ key.float().transpose(-1, -2)
        weights = logits.masked_fill(~allowed[:, :, rows], -torch.inf).softmax(-1)
        weights = weights.masked_fill(~real[:, None, rows, None], 0)
        total += weights.sum((1, 2))
    seen = (allowed[:, 0] & real[:, :, None]).sum(1)
    return (total / (heads * seen.clamp(min=1))).masked_fill(~real, 0)
