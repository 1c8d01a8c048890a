"""Attention probabilities of a few queries, as a method inside the language model reads them."""

from __future__ import annotations

import torch
from torch import Tensor


def row_probabilities(
    query: Tensor,
    key: Tensor,
    scale: float,
    allowed: Tensor,
    softcap: float | None = None,
    mean: bool = False,
) -> Tensor:
    """Float32 `[B, H, R, K]`; a query that may see nothing has a row of zeros.

    Args:
        query: `[B, H, R, d]`.
        key: `[B, G, K, d]`, G dividing H: so many heads share keys.
        scale: factor on the products.
        allowed: bool `[B, R, K]`, which keys each query may see.
        softcap: the bound that logits are squashed to, by tanh.
        mean: over heads, `[B, R, K]`.
    """
    groups = key.shape[1]
    asked = query.float().unflatten(1, (groups, -1))  # [B, G, H / G, R, d]
    logits = asked @ key.float()[:, :, None].transpose(-1, -2) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits.flatten(1, 2).masked_fill(~allowed[:, None], -torch.inf)
    out = logits.softmax(-1).masked_fill(~allowed[:, None], 0)
    return out.mean(1) if mean else out
