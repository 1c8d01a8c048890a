"""Merging in pairs: every other token looks for its likest among those between.

Source: "Token Merging" (arXiv 2210.09461), from its description. S tiles, N patches a tile, lists of L
places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from vtc.functional.ragged import to_device
from vtc.kernels._dispatch import opaque
from vtc.kernels.merge import weighted_merge


def halving(size: int, target: int) -> list[int]:
    """How many of `size` tokens each round removes until `target` are left: half of them at most."""
    out = []
    while size > target:
        out.append(min(size // 2, size - target))
        size -= out[-1]
    return out


def merge_pairs(
    metric: Tensor, valid: Tensor, sizes: Sequence[int], rounds: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Rounds of merging: the places 0, 2, .. of a list look for the likest of the places 1, 3, ..

    Those with the likest are merged into them. A round leaves the others of the first kind, by falling
    likeness, and then those of the second kind; the metric is merged like the tokens.

    Args:
        metric: `[S, N, d]`, compared by cosine.
        valid: bool `[S, N]`, patches that are not padding; the first list is they, in raster order.
        sizes: how many these are of each tile.
        rounds: how many are removed of each tile, one list a tile.

    Returns:
        int64 `[S, N]`, the place of each patch's token in the last list, N for padding; and int64
        `[S, N]`, the main source of each place: the patch that others were merged into.
    """
    number = max(len(some) for some in rounds)
    table = [[*some, *[0] * (number - len(some))] for some in rounds]
    most, left = [], list(sizes)
    for nth in range(number):
        most.append(max(left))
        left = [size - some[nth] for size, some in zip(left, table, strict=True)]
    remove, size = to_device(table, metric).view(len(sizes), number), to_device(list(sizes), metric)
    return _rounds(metric.float(), valid, size, remove, most)


def _merge_pairs(
    metric: Tensor, valid: Tensor, size: Tensor, remove: Tensor, most: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The rounds; each depends on the one before: one operation, of as many steps.

    Args:
        metric, valid: see `merge_pairs`.
        size: int64 `[S]`.
        remove: int64 `[S, rounds]`.
        most: the longest list in front of each round.
    """
    patches = valid.shape[1]
    # what is no patch has a place behind all lists
    place = torch.where(valid, valid.cumsum(1) - 1, patches)
    main = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
    values = metric.masked_fill(~valid[..., None], 0)
    values = values.gather(1, main[..., None].expand_as(metric))
    weight, size = torch.ones_like(values[..., 0]), size[:, None]
    every = torch.arange(valid.numel(), device=valid.device)
    tile = torch.arange(len(valid), device=valid.device)[:, None]
    for nth, length in enumerate(most):
        values, weight = values[:, :length], weight[:, :length]
        number, drop = torch.arange(length, device=main.device), remove[:, nth, None]
        there = number < size
        first, second = there[:, 0::2], there[:, 1::2]
        like = normalize(values[:, 0::2], dim=-1) @ normalize(values[:, 1::2], dim=-1).mT
        like.masked_fill_(~second[:, None], -torch.inf)
        best, to = pad(like, (0, 1), value=-torch.inf).max(2)
        by = best.masked_fill(~first, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        rank = torch.empty_like(by).scatter_(1, by, number[: by.shape[1]].expand_as(by))
        alone = (size + 1) // 2 - drop
        moved = torch.empty_like(there, dtype=torch.int64)
        moved[:, 0::2] = torch.where(rank < drop, alone + to, rank - drop)
        moved[:, 1::2] = alone + number[: second.shape[1]]
        moved = torch.where(drop > 0, moved, number).masked_fill(~there, patches)

        merged = torch.zeros_like(there)
        merged[:, 0::2] = rank < drop
        target = moved.masked_fill(merged, patches)
        main = pad(main, (0, 1)).scatter(1, target, main[:, :length])[:, :patches]
        place = pad(moved, (0, patches + 1 - length), value=patches).gather(1, place)
        # what is behind a list goes to its first token, without weight
        to = (moved.masked_fill(~there, 0) + length * tile).flatten()
        weight = weight.masked_fill(~there, 0).flatten()
        total = torch.zeros_like(weight).index_add(0, to, weight).clamp(min=1)
        sums = weighted_merge(values.flatten(0, 1), to, every[: len(to)], weight, len(to))
        values = sums.div_(total[:, None]).view_as(values)
        weight, size = total.view(there.shape), size - drop
    return place, main.contiguous()


_rounds = opaque(
    "merge_pairs",
    "(Tensor metric, Tensor valid, Tensor size, Tensor remove, int[] most) -> (Tensor, Tensor)",
    _merge_pairs,
    lambda metric, valid, size, remove, most: (
        torch.empty_like(valid, dtype=torch.int64),
        torch.empty_like(valid, dtype=torch.int64),
    ),
)
