"""Attention of one query (the CLS token) over all keys of a tile, averaged over heads.

Only the one row is computed, never the L x L matrix: 2 * B * H * L * d FLOPs and one pass over the
keys, B * H * L * d elements read.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cls_attention(query: Tensor, keys: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Head-averaged logits and probabilities of one query per tile.

    Args:
        query: `[B, H, d]`.
        keys: `[B, H, L, d]`.
        scale: factor on the logits, normally `d ** -0.5`.

    Returns:
        Logits and probabilities, both float32 `[B, L]`. The probabilities are the mean over heads of
        each head's softmax, so they are not the softmax of the logits.
    """
    # The scale goes on the query first, as in the attention modules whose scores this reproduces.
    row = (query.float() * scale)[:, :, None, :]
    logits = (row @ keys.float().transpose(-1, -2)).squeeze(2)
    return logits.mean(1), torch.softmax(logits, dim=-1).mean(1)
