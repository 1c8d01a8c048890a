"""Top-k with another k for every row: which patches each tile keeps, and in which order."""

from __future__ import annotations

import torch
from torch import Tensor


def segmented_topk(scores: Tensor, k: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `k[s]` largest scores of every row; ties go to the lower index, on any device.

    Rows are padded to one length and masked, so that one sort serves all tiles. Counts above the
    number of valid entries are cut to it.

    Args:
        scores: float `[S, N]`.
        k: int64 `[S]`, entries wanted of each row, on any device.
        valid: bool `[S, N]`, entries that may be chosen; None for all.

    Returns:
        `order`, int64 `[S, N]`: every row sorted by descending score, invalid entries last; and
        `keep`, bool `[S, N]`: the entries chosen, at their place in `scores`.

    Bytes: reads 4 SN (+ SN with a mask), writes 9 SN; the sort makes another 12 SN.
    """
    scores = scores.float()
    if valid is None:
        order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
        limit = k.to(scores.device)
    else:
        masked = scores.masked_fill(~valid, -torch.inf)
        order = torch.sort(masked, dim=-1, descending=True, stable=True).indices
        # a valid score may be -inf itself: sorting once more by the mask keeps it in front
        usable = valid.gather(-1, order)
        order = order.gather(-1, torch.sort(~usable, dim=-1, stable=True).indices)
        limit = torch.minimum(k.to(scores.device), valid.sum(-1))
    rank = torch.arange(scores.shape[-1], device=scores.device)
    keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    keep.scatter_(-1, order, rank < limit[:, None])
    return order, keep
