"""Tokens that stay, each made of itself and of patches that are given to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.ragged import true_places
from vtc.kernels.cosine_topk import cosine_topk
from vtc.kernels.merge import weighted_merge
from vtc.selection import Selection
from vtc.tokens import VisualTokens


def listed(mask: Tensor, counts: Sequence[int]) -> Tensor:
    """Int64 `[S, most]`: the True entries of each row of `mask` `[S, N]`, of which there are
    `counts`; what is behind them is of no meaning, and there is one column at least."""
    return (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(*counts, 1)]


def nearest(values: Tensor, mask: Tensor, counts: Sequence[int]) -> Tensor:
    """The entry of `mask` that is most alike each patch by cosine, lower on ties; int64 `[S, N]`.

    Args:
        values: `[S, N, C]`, float32.
        mask: bool `[S, N]`, the entries.
        counts: how many there are of each tile; without any, what comes back is of no meaning.
    """
    entries = listed(mask, counts)
    there = values.gather(1, entries[..., None].expand(-1, -1, values.shape[-1]))
    real = mask.gather(1, entries)
    found = cosine_topk(values, there, 1, valid=real).squeeze(-1).clamp(min=0)
    return entries.gather(1, found)


def official_length(tokens: VisualTokens, order: str) -> int:
    """The packed length of a single tile whose tokens are to stand in the official order, otherwise 0:
    images of one batch must be alike in it, see `ImageBatch.merge`."""
    return tokens.packing.length if order == "official" and len(tokens.features) == 1 else 0


def merge_into(
    batch: ImageBatch,
    keep: Tensor,
    owner: Tensor,
    given: Tensor,
    counts: Sequence[int],
    weight: str,
    key: Tensor | None = None,
) -> Selection:
    """The patches that stay, and with each those that are given to it.

    Args:
        batch: the images; as many tokens stay of each as its budget says.
        keep: bool `[S, N]`, those that stay.
        owner: int64 `[S, N]`, for each patch that is given away the one of its tile that gets it.
        given: bool `[S, N]`, which they are.
        counts: how many stay or are given away of each tile.
        weight: "mean" of the token's patches, or "sum": itself and the mean of what it was given.
        key: int64 `[S, N]`, ranks of tokens in their image, see `ImageBatch.merge`.
    """
    patches = keep.shape[1]
    kept = true_places(keep.flatten(), sum(batch.budgets))
    source = true_places((keep | given).flatten(), sum(counts))
    owner = torch.where(keep, torch.arange(patches, device=keep.device), owner).flatten()
    number = keep.flatten().cumsum(0) - 1
    output = number[source - source % patches + owner[source]]
    size = torch.zeros(len(kept), device=keep.device)
    size.index_add_(0, output, torch.ones_like(output, dtype=torch.float32))
    share = 1 / size[output]
    if weight == "sum":
        share = torch.where(keep.flatten()[source], 1, 1 / (size[output] - 1))
    return batch.merge(
        batch.tables.packed.flatten()[kept],
        output,
        source,
        share,
        size,
        batch.budgets,
        batch.per_image(counts),
        key=None if key is None else key.flatten()[kept],
    )


def merge_all(
    batch: ImageBatch, keep: Tensor, owner: Tensor, share: Tensor, counts: Sequence[int]
) -> Selection:
    """The patches that stay, each the weighted mean of all patches that it stands for.

    Args:
        batch: the images.
        keep: bool `[S, N]`, those that stay.
        owner: int64 `[S, N]`, for each patch the one of its image that stands for it, as
            `tile * N + patch` of the batch; those that stay stand for themselves.
        share: float `[S, N]`, weights, not negative. Where nothing of a token has weight, its own patch
            stays as it is.
        counts: how many stay of each image.
    """
    valid, total = batch.tables.valid, sum(batch.available)
    kept = true_places(keep.flatten(), sum(counts))
    source = true_places(valid.flatten(), total)
    output = (keep.flatten().cumsum(0) - 1)[owner.flatten()[source]]
    least = torch.finfo(torch.float32).tiny
    weight = torch.where(keep, share.float().clamp(min=least), share.float()).flatten()[source]
    both = torch.stack([weight, torch.ones_like(weight)], 1)
    sums = weighted_merge(
        both, output, torch.arange(total, device=kept.device), torch.ones_like(weight), len(kept)
    )
    return batch.merge(
        batch.tables.packed.flatten()[kept],
        output,
        source,
        weight / sums[output, 0],
        sums[:, 1],
        counts,
        batch.per_image(batch.available),
    )
