"""The maths of Recoverable Compression: outlier counts decide how many tokens stay.

Source: "Recoverable Compression: A Multimodal Vision Token Recovery Mechanism Guided by Text
Information" (arXiv 2409.01179), read from the official code for LLaVA-1.5; the step numbers are
those of its forward pass. T tiles, N patches a tile, C width of the vision tower, P width of the
shared text-image space. All functions treat the tiles of an image side by side and take a mask of
the patches that are not padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.functional.budget import apportion
from vtc.kernels.lof import local_outlier_factor
from vtc.kernels.segmented_topk import segmented_topk

#: a value is an outlier when its negative outlier factor is below this (scikit-learn's "auto")
OUTLIER = -1.5


@dataclass(frozen=True)
class Options:
    """What the official code has written into it; see `vtc.methods.recoverable` for meanings."""

    variant: str = "sequential"
    keys: str = "official"
    centres: str = "official"
    rounding: str = "official"
    visual_k: int = 20
    text_k: int = 20
    rest_k: int = 10
    cluster: int = 32
    text_weight: float = 50.0


@dataclass(frozen=True)
class Recovery:
    """The decision for the tiles of one image, with the steps that led to it.

    Orders are int64 `[T, N]`, best first; only the first `count[t]` of a row are meant. Counts are
    int64 `[T]` on the CPU.

    Attributes:
        visual: float32 `[T, N]`, visual score a.
        text: float32 `[T, N]`, text score b.
        text_seen: `[T, N]`, b as the text filter sees it (overwritten in the sequential variant).
        factor_visual, factor_text, factor_rest: `[T, N]`, negative outlier factors of the three
            filters.
        visual_order, visual_count: patches kept for their visual score.
        text_order, text_count: patches recovered by the text.
        main: bool `[T, N]`, both together.
        rest: bool `[T, N]`, valid patches that are not in `main`.
        centre_order, centre_count: patches of the rest that become centres.
        members: int64 `[T, max(centre_count), cluster]`, patches merged into each centre, best
            first; -1 where there are fewer.
        extra: bool `[T]`, CPU: whether the tile gets an extra token.
    """

    visual: Tensor
    text: Tensor
    text_seen: Tensor
    factor_visual: Tensor
    factor_text: Tensor
    factor_rest: Tensor
    visual_order: Tensor
    visual_count: Tensor
    text_order: Tensor
    text_count: Tensor
    main: Tensor
    rest: Tensor
    centre_order: Tensor
    centre_count: Tensor
    members: Tensor
    extra: Tensor

    @property
    def total(self) -> Tensor:
        """Int64 `[T]`, CPU: output tokens of each tile."""
        return self.main.sum(1).cpu() + self.centre_count + self.extra


def visual_scores(query: Tensor, keys: Tensor) -> Tensor:
    """Softmax attention of CLS over all keys as one head of width C, CLS column dropped (step 1).

    Args:
        query: `[T, C]`, not scaled.
        keys: `[T, N + 1, C]`, CLS first.

    Returns:
        float32 `[T, N]`, not renormalised.
    """
    width = query.shape[-1]
    logits = torch.einsum("tc,tnc->tn", query.float(), keys.float()) * width**-0.5
    return torch.softmax(logits, dim=-1)[:, 1:]


def text_scores(patches: Tensor, text: Tensor) -> Tensor:
    """Cosine of every patch and the text in the shared space, times `P**-0.5` (step 2).

    Args:
        patches: `[T, N, P]`.
        text: `[P]`.

    Returns:
        float32 `[T, N]`.
    """
    return (
        normalize(patches.float(), dim=-1) @ normalize(text.float(), dim=-1) * text.shape[0] ** -0.5
    )


def outliers(values: Tensor, k: int, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Negative outlier factors `[T, N]` and the outliers of each tile, int64 `[T]` on the CPU.

    Outliers at both ends count.
    """
    factor = local_outlier_factor(values, k, valid)
    return factor, ((factor < OUTLIER) & valid).sum(1).cpu()


def share(size: Tensor, count: Tensor, length: Tensor, rounding: str) -> Tensor:
    """`floor(size * count / length)`, int64 on the CPU; 0 where length is 0 (steps 4, 5, 7).

    Args:
        size, count, length: int64 `[T]` on the CPU.
        rounding: `"official"` divides first, in float64, which loses one token for some counts
            where `size == length` (729 patches: 1, 2, 4, 8, ...); `"exact"` is whole-number
            arithmetic.
    """
    length = length.clamp(min=1)
    if rounding == "exact":
        return size * count // length
    return torch.floor(size.double() * (count.double() / length.double())).long()


def cluster_keys(keys: Tensor, rest: Tensor, alignment: str) -> Tensor:
    """The key that each patch of the rest is compared by, unit length, float32 `[T, N, C]`.

    `"aligned"`: its own. `"official"`: the patch at position p of the rest list has the key of
    patch p of the whole tile, because the official code does not gather the keys (step 9).

    Args:
        keys: `[T, N, C]` without CLS.
        rest: bool `[T, N]`.
        alignment: see above.
    """
    keys = keys.float()
    if alignment == "official":
        position = (rest.long().cumsum(1) - 1).clamp(min=0)
        keys = keys.gather(1, position[..., None].expand_as(keys))
    return normalize(keys, dim=-1)


def cluster_members(
    unit: Tensor, text: Tensor, rest: Tensor, centres: Tensor, cluster: int, text_weight: float
) -> Tensor:
    """The patches merged into each centre, by `cos + text_weight * b` (step 8).

    Args:
        unit: `[T, N, C]`, from `cluster_keys`.
        text: `[T, N]`, text scores.
        rest: bool `[T, N]`, candidates; a centre is none of its own.
        centres: int64 `[T, J]`, patches.
        cluster: members wanted of each; fewer where the rest is small.
        text_weight: see above.

    Returns:
        int64 `[T, J, cluster]`, best first, -1 where there are fewer.
    """
    tiles, patches, width = unit.shape
    chosen = unit.gather(1, centres[..., None].expand(-1, -1, width))
    score = chosen @ unit.transpose(1, 2) + text_weight * text[:, None]
    patch = torch.arange(patches, device=unit.device)
    candidate = rest[:, None] & (patch != centres[..., None])
    wanted = candidate.sum(-1).clamp(max=cluster)
    rows = tiles * centres.shape[1]
    order, _ = segmented_topk(
        score.view(rows, patches), wanted.flatten(), candidate.view(rows, patches)
    )
    members = order.view(tiles, -1, patches)[..., :cluster]
    rank = torch.arange(members.shape[-1], device=unit.device)
    members = members.masked_fill(rank >= wanted[..., None], -1)
    return torch.nn.functional.pad(members, (0, cluster - members.shape[-1]), value=-1)


def recover(
    visual: Tensor,
    text: Tensor,
    keys: Tensor,
    valid: Tensor,
    channels: int,
    options: Options,
    counts: Tensor | None = None,
) -> Recovery:
    """Steps 3 to 9 for all tiles of an image.

    Args:
        visual: `[T, N]`, from `visual_scores`.
        text: `[T, N]`, from `text_scores`.
        keys: `[T, N, C]`, without CLS.
        valid: bool `[T, N]` on the same device.
        channels: C of the features, which the official code takes for a number of tokens.
        options: variant and corrections.
        counts: int64 `[T, 4]`, CPU: visual, text, centre and extra tokens of each tile, instead of
            the method's own numbers; their sum is at most the tile's patches.
    """
    visual, text = visual.float(), text.float()
    sequential = options.variant == "sequential"
    size = valid.sum(1).cpu()

    factor_visual, found = outliers(visual, options.visual_k, valid)
    visual_count = share(size, found, size, options.rounding) if counts is None else counts[:, 0]
    visual_order, by_visual = segmented_topk(visual, visual_count, valid)

    seen = text
    if sequential:
        lowest = text.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
        seen = torch.where(by_visual, lowest, text)
    factor_text, found = outliers(seen, options.text_k, valid)
    # with given counts, and where the overwritten minimum is no strict one, no patch twice
    pool = valid & ~by_visual if sequential or counts is not None else valid
    base = size - visual_count if sequential else size
    text_count = share(base, found, size, options.rounding) if counts is None else counts[:, 1]
    text_order, by_text = segmented_topk(seen, text_count, pool)

    main = by_visual | by_text
    rest = valid & ~main
    left = rest.sum(1).cpu()
    factor_rest, found = outliers(visual, options.rest_k, rest)
    if counts is None:
        whole = size if options.variant == "union" else torch.full_like(size, channels)
        whole = left if options.centres == "tokens" else whole
        centre_count = torch.minimum(share(whole, found, left, options.rounding), left)
        extra = left > centre_count
        if sequential:
            extra &= centre_count > 0
    else:
        centre_count, extra = counts[:, 2], counts[:, 3] > 0
    centre_order, _ = segmented_topk(visual, centre_count, rest)

    most = int(centre_count.max())
    members = cluster_members(
        cluster_keys(keys, rest, options.keys),
        seen,
        rest,
        centre_order[:, :most],
        options.cluster,
        options.text_weight,
    )
    nobody = torch.arange(most) >= centre_count[:, None]
    members = members.masked_fill(nobody.to(members.device)[..., None], -1)
    return Recovery(
        visual=visual,
        text=text,
        text_seen=seen,
        factor_visual=factor_visual,
        factor_text=factor_text,
        factor_rest=factor_rest,
        visual_order=visual_order,
        visual_count=visual_count,
        text_order=text_order,
        text_count=text_count,
        main=main,
        rest=rest,
        centre_order=centre_order,
        centre_count=centre_count,
        members=members,
        extra=extra,
    )


def budget_counts(own: Recovery, available: Sequence[int], total: int) -> Tensor:
    """Counts for `recover` that add up to `total`, in the method's own proportions.

    Tiles share the total by one more than their own count of tokens; within a tile visual,
    recovered and merged tokens keep their proportions. One of the merged tokens is the extra one
    as soon as there are two.

    Args:
        own: what the method would do by itself.
        available: valid patches of each tile.
        total: patch tokens of the image.

    Returns:
        int64 `[T, 4]`, CPU: visual, text, centre, extra.
    """
    main = own.main.sum(1).tolist()
    visual = own.visual_count.tolist()
    merged = (own.total - own.main.sum(1).cpu()).tolist()
    tiles = apportion([m + g + 1 for m, g in zip(main, merged, strict=True)], available, total)
    rows = []
    for tile, wanted in enumerate(tiles):
        parts = [max(visual[tile], 1), main[tile] - visual[tile], merged[tile]]
        a, b, c = apportion(parts, [wanted] * 3, wanted)
        extra = int(c > 1)
        rows.append([a, b, c - extra, extra])
    return torch.tensor(rows)
