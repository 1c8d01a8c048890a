"""How many other patches of a tile look alike: counts of cosine similarities above a threshold."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def neighbour_count(
    keys: Tensor, alpha: float, valid: Tensor | None = None, block: int = 256
) -> Tensor:
    """For each patch, the number of other valid patches with cosine similarity above `alpha`.

    Worked off in blocks of rows, so that the `[N, N]` similarities never exist at once.

    Args:
        keys: `[T, N, C]`, compared within a tile; computed in float32.
        alpha: threshold, strict (`>`).
        valid: bool `[T, N]`, patches that take part; None for all. Others count 0.
        block: rows of similarities in memory at a time.

    Returns:
        int64 `[T, N]`.

    Bytes: reads 4 TNC for every block, writes 8 TN, holds 4 T * block * N.
    """
    unit = normalize(keys.float(), dim=-1)
    tiles, patches, _ = unit.shape
    index = torch.arange(patches, device=keys.device)
    counts = []
    for start in range(0, patches, block):
        rows = slice(start, start + block)
        alike = unit[:, rows] @ unit.transpose(1, 2) > alpha
        alike &= index[rows, None] != index
        if valid is not None:
            alike &= valid[:, None, :] & valid[:, rows, None]
        counts.append(alike.sum(-1))
    return torch.cat(counts, 1) if counts else keys.new_zeros(tiles, 0, dtype=torch.int64)
