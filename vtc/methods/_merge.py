"""Putting merged tokens and separators together, for the methods that merge."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.ragged import send
from vtc.kernels.merge import weighted_merge
from vtc.tokens import CompressedTokens, MergeIndex


def assemble(
    batch: ImageBatch,
    place: Tensor,
    output: Tensor,
    source: Tensor,
    weight: Tensor,
    size: Tensor,
    tokens: Sequence[int],
    entries: Sequence[int],
    *,
    separators: tuple[Tensor, Sequence[int]] | None = None,
    key: Tensor | None = None,
    features: Tensor | None = None,
) -> list[CompressedTokens]:
    """Merged tokens with their separators, in order.

    Args:
        batch: the images.
        place: int64 `[M]`, place among all packed tokens of each merged token's main source;
            distinct, not padding.
        output, source, weight: `[K]` entries of the merge: token (counted in this order), source as
            `tile * N + patch` in the batch, coefficient.
        size: float `[M]`, source tokens that each one stands for.
        tokens, entries: of each image, M and K together.
        separators: places of the separators that stay and how many of them each image has; None for
            all.
        key: int64 `[M]`, a token's rank in its image, below its packed length; separators then
            follow behind. None to sort everything by position. Needs images of equal packed length.
        features: `[M, D]` ready-made token features instead of the weighted sums.

    Returns:
        Features, provenance and `MergeIndex`; the index counts separators as outputs without
        sources. Gradients flow to the images' features and `features`.
    """
    tables = batch.tables
    if separators is None:
        separators = tables.separators, batch.separators
    where = torch.cat([place, separators[0]])
    if key is None:
        order = where.argsort()
    else:
        own = tables.origin[3, where]
        behind = own[len(place) :] + len(batch.shapes[0].source)
        order = (2 * (where - own) + torch.cat([key, behind])).argsort()
    lengths = [n + s for n, s in zip(tokens, separators[1], strict=True)]

    output = torch.empty_like(order).scatter_(
        0, order, torch.arange(len(order), device=order.device)
    )[output]
    output, entry = torch.sort(output, stable=True)
    source, weight = source[entry], weight[entry].float()
    if features is None:
        values = weighted_merge(batch.features.flatten(0, 1), output, source, weight, len(order))
    else:
        values = torch.cat([features, features.new_zeros(len(separators[0]), features.shape[1])])
        values = values[order]
    sizes = torch.cat([size.float(), torch.ones_like(separators[0], dtype=torch.float32)])[order]

    # from indices of the batch to indices of each image
    image = tables.image[source // tables.valid.shape[1]]
    ends = torch.tensor(lengths).cumsum(0)
    output = output - send(ends - torch.tensor(lengths), order)[image]
    source = source - (tables.first * tables.valid.shape[1])[image]
    columns = (x.split(list(entries)) for x in (output, source, weight))
    sources = [shape.valid.numel() for shape in batch.shapes]
    merged = [MergeIndex(*parts) for parts in zip(*columns, lengths, sources, strict=True)]
    return batch.gather(
        where[order],
        lengths,
        separators[1],
        features=values,
        weight=sizes,
        merged=merged,
        # sums of finite features with finite weights; only half precision can overflow. What is out of
        # range was refused by the indexing above
        sound=features is None
        and values.dtype != torch.float16
        and _finite(sizes)
        and _finite(weight),
    )


def _finite(weight: Tensor) -> bool:
    """Whether weights are numbers, as far as no device has to be asked."""
    if weight.device.type != "cpu":
        return False
    plain = weight.detach() if weight.requires_grad else weight
    return math.isfinite(plain.numpy().sum())
