"""Putting merged tokens and separators together, for the methods that merge."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.tokens import CompressedTokens, MergeIndex, VisualTokens, gather_tokens, packed_index


def assemble(
    tokens: VisualTokens,
    tile: Tensor,
    patch: Tensor,
    output: Tensor,
    source: Tensor,
    weight: Tensor,
    size: Tensor,
    *,
    separators: Tensor | None = None,
    by_position: bool = True,
    features: Tensor | None = None,
) -> CompressedTokens:
    """Merged tokens with their separators, in order.

    Args:
        tokens: the image.
        tile, patch: int64 `[M]`, main source of each merged token; distinct, not padding.
        output, source, weight: `[K]` entries of the `MergeIndex`, outputs counted in this order.
        size: float `[M]`, source tokens that each one stands for.
        separators: int64, packed indices of the separators that stay; None for all.
        by_position: sort everything by anchor; otherwise the order given, then the separators.
        features: `[M, D]` ready-made token features instead of the weighted sums of `tokens`.

    Returns:
        Features, provenance and `MergeIndex`; the index counts separators as outputs without
        sources. Gradients flow to `tokens.features` and `features`.
    """
    device = tokens.features.device
    layout = tokens.layout
    if separators is None:
        separators = (~layout.is_patch).nonzero().squeeze(1)
    tile, patch, size = tile.cpu(), patch.cpu(), size.cpu().float()
    none = torch.full_like(separators, -1)
    anchor = torch.cat([packed_index(tokens)[tile, patch], separators])
    order = anchor.argsort() if by_position else torch.arange(len(anchor))
    count = len(tile)

    out = gather_tokens(
        tokens,
        torch.cat([tile, none])[order],
        torch.cat([patch, none])[order],
        anchor[order],
    )
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    place, order = place.to(device), order.to(device)
    index = MergeIndex(
        output=place[output.to(device)],
        source=source.to(device),
        weight=weight.to(device).float(),
        num_outputs=len(order),
        num_sources=tokens.features.shape[0] * tokens.features.shape[1],
    )
    if features is None:
        values = index.merge(tokens.features.flatten(0, 1))
        values = torch.where(out.is_patch[:, None], values, out.features)
    else:
        values = features.new_zeros(len(order), features.shape[1])
        if tokens.newline is not None and tokens.newline.shape[-1] == features.shape[1]:
            values = values + tokens.newline.to(values)
        values = values.index_copy(0, place[:count], features)
    sizes = torch.cat([size, torch.ones(len(separators))]).to(device)[order]
    return out.replace(features=values, weight=sizes, merged=index)
