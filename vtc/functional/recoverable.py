"""The maths of Recoverable Compression: outlier counts decide how many tokens stay.

Source: "Recoverable Compression: A Multimodal Vision Token Recovery Mechanism Guided by Text
Information" (arXiv 2409.01179), read from the official code for LLaVA-1.5; the step numbers are
those of its forward pass. T tiles, N patches a tile, C width of the vision tower, P width of the
shared text-image space. All functions treat the tiles of any number of images side by side and take
a mask of the patches that are not padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.functional.budget import apportion
from vtc.functional.ragged import to_device, to_host
from vtc.kernels.cosine_topk import cosine_topk
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
class Counts:
    """How many patches of each tile become what, int64 `[T]` on the CPU.

    Attributes:
        visual: kept for their visual score.
        text: recovered by the text.
        main: kept or recovered, each counted once.
        centre: of the rest, centres that others are merged into.
        extra: 1 where a token sums up what is left then.
    """

    visual: Tensor
    text: Tensor
    main: Tensor
    centre: Tensor
    extra: Tensor

    @property
    def total(self) -> Tensor:
        """Output tokens of each tile."""
        return self.main + self.centre + self.extra


@dataclass(frozen=True)
class Recovery:
    """The decision for some tiles, with the steps that led to it.

    Orders are int64 `[T, N]`, best first; only the first `counts` of a row are meant.

    Attributes:
        counts: how many patches of each tile become what.
        visual: float32 `[T, N]`, visual score a.
        text: float32 `[T, N]`, text score b.
        text_seen: `[T, N]`, b as the text filter sees it (overwritten in the sequential variant).
        factor_visual, factor_text, factor_rest: `[T, N]`, negative outlier factors that the method's
            own counts came from.
        visual_order: patches by visual score.
        text_order: patches by the text score that is seen.
        main: bool `[T, N]`, kept or recovered.
        rest: bool `[T, N]`, valid patches that are not in `main`.
        centre_order: patches of the rest by visual score.
        members: int64 `[T, max(counts.centre), cluster]`, patches merged into each centre, best
            first; -1 where there are fewer.
    """

    counts: Counts
    visual: Tensor
    text: Tensor
    text_seen: Tensor
    factor_visual: Tensor
    factor_text: Tensor
    factor_rest: Tensor
    visual_order: Tensor
    text_order: Tensor
    main: Tensor
    rest: Tensor
    centre_order: Tensor
    members: Tensor


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
        text: `[P]`, or `[T, P]` for one text a tile.

    Returns:
        float32 `[T, N]`.
    """
    text = normalize(text.float(), dim=-1).expand(len(patches), -1)
    cosine = (normalize(patches.float(), dim=-1) @ text[..., None]).squeeze(-1)
    return cosine * text.shape[-1] ** -0.5


def similarity_scores(similarity: Tensor, width: int, valid: Tensor, image: Tensor) -> Tensor:
    """Likeness to the question's tokens on the scale of `text_scores` [ours].

    Dot products have any scale, so those of an image are put between 0 and 1 first, as READ does with
    its maps.

    Args:
        similarity: `[T, N]`, see `similarity.token_similarity`.
        width: C of the patches; its root is the scale that a cosine has in `text_scores`.
        valid: bool `[T, N]`, patches that have a token.
        image: int64 `[T]`, the image of each tile, 0, 1, ...

    Returns:
        float32 `[T, N]`.
    """
    x = similarity.float()
    low = x.masked_fill(~valid, torch.inf).amin(1)
    high = x.masked_fill(~valid, -torch.inf).amax(1)
    low = low.new_full((len(x),), torch.inf).scatter_reduce(0, image, low, "amin")[image]
    high = high.new_full((len(x),), -torch.inf).scatter_reduce(0, image, high, "amax")[image]
    span = (high - low).clamp(min=torch.finfo(x.dtype).tiny)
    return ((x - low[:, None]) / span[:, None]).masked_fill(~valid, 0) * width**-0.5


def outliers(values: Tensor, k: int, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Negative outlier factors `[T, N]` and the outliers of each tile, int64 `[T]`.

    Outliers at both ends count.
    """
    factor = local_outlier_factor(values, k, valid)
    return factor, ((factor < OUTLIER) & valid).sum(1)


def share(size: Tensor, count: Tensor, length: Tensor, rounding: str) -> Tensor:
    """`floor(size * count / length)`, int64; 0 where length is 0 (steps 4, 5, 7).

    Args:
        size, count, length: int64 `[T]`.
        rounding: `"official"` divides first, in float64, which loses one token for some counts
            where `size == length` (729 patches: 1, 2, 4, 8, ...); `"exact"` is whole-number
            arithmetic.
    """
    length = length.clamp(min=1)
    if rounding == "exact":
        return size * count // length
    return torch.floor(size.double() * (count.double() / length.double())).long()


def cluster_keys(keys: Tensor, rest: Tensor, alignment: str) -> Tensor:
    """The key that each patch of the rest is compared by, `[T, N, C]`.

    `"aligned"`: its own. `"official"`: the patch at position p of the rest list has the key of
    patch p of the whole tile, because the official code does not gather the keys (step 9).

    Args:
        keys: `[T, N, C]` without CLS.
        rest: bool `[T, N]`.
        alignment: see above.
    """
    if alignment == "official":
        position = (rest.long().cumsum(1) - 1).clamp(min=0)
        keys = keys.gather(1, position[..., None].expand_as(keys))
    return keys


def cluster_members(
    keys: Tensor, text: Tensor, rest: Tensor, centres: Tensor, cluster: int, text_weight: float
) -> Tensor:
    """The patches merged into each centre, by `cos + text_weight * b` (step 8).

    Args:
        keys: `[T, N, C]`, from `cluster_keys`.
        text: `[T, N]`, text scores.
        rest: bool `[T, N]`, candidates; a centre is none of its own.
        centres: int64 `[T, J]`, patches.
        cluster: members wanted of each; fewer where the rest is small.
        text_weight: see above.

    Returns:
        int64 `[T, J, cluster]`, best first, -1 where there are fewer.
    """
    if cluster == 0:
        return centres.new_empty(*centres.shape, 0)
    chosen = keys.gather(1, centres[..., None].expand(-1, -1, keys.shape[-1]))
    return cosine_topk(chosen, keys, cluster, text_weight * text, rest, centres)


def recover(
    visual: Tensor,
    text: Tensor,
    keys: Tensor,
    valid: Tensor,
    channels: int,
    options: Options,
    wanted: Callable[[Counts], Counts] | None = None,
    exact: bool = False,
) -> Recovery:
    """Steps 3 to 9 for all tiles; waits for the device once, to learn the counts.

    Args:
        visual: `[T, N]`, from `visual_scores`.
        text: `[T, N]`, from `text_scores`.
        keys: `[T, N, C]`, without CLS.
        valid: bool `[T, N]` on the same device.
        channels: C of the features, which the official code takes for a number of tokens.
        options: variant and corrections.
        wanted: from the method's own counts to those that are to be; None leaves them.
        exact: no patch may be both kept and recovered, so that counts add up.
    """
    visual, text = visual.float(), text.float()
    sequential = options.variant == "sequential"
    size = valid.sum(1)
    lowest = text.masked_fill(~valid, torch.inf).amin(1, keepdim=True)

    def keep(count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        order, by_visual = segmented_topk(visual, count, valid)
        seen = torch.where(by_visual, lowest, text) if sequential else text
        return order, by_visual, seen

    def bring_back(
        count: Tensor, seen: Tensor, by_visual: Tensor, once: bool
    ) -> tuple[Tensor, ...]:
        # where the overwritten minimum is no strict one, too, no patch twice
        order, by_text = segmented_topk(seen, count, valid & ~by_visual if once else valid)
        main = by_visual | by_text
        return order, main, valid & ~main

    factor_visual, found = outliers(visual, options.visual_k, valid)
    visual_count = share(size, found, size, options.rounding)
    _, by_visual, seen = keep(visual_count)
    factor_text, found = outliers(seen, options.text_k, valid)
    base = size - visual_count if sequential else size
    text_count = share(base, found, size, options.rounding)
    _, main, rest = bring_back(text_count, seen, by_visual, sequential)

    left = rest.sum(1)
    factor_rest, found = outliers(visual, options.rest_k, rest)
    whole = size if options.variant == "union" else torch.full_like(size, channels)
    whole = left if options.centres == "tokens" else whole
    centre_count = torch.minimum(share(whole, found, left, options.rounding), left)
    extra = left > centre_count
    if sequential:
        extra &= centre_count > 0

    own = [visual_count, text_count, main.sum(1), centre_count, extra.long()]
    counts = Counts(*to_host(torch.stack(own)).unbind())
    counts = wanted(counts) if wanted else counts
    visual_count, text_count, centre_count = to_device(
        torch.stack([counts.visual, counts.text, counts.centre]), visual
    )
    visual_order, by_visual, seen = keep(visual_count)
    text_order, main, rest = bring_back(text_count, seen, by_visual, sequential or exact)
    centre_order, _ = segmented_topk(visual, centre_count, rest)

    most = max(counts.centre.tolist())
    members = cluster_members(
        cluster_keys(keys, rest, options.keys),
        seen,
        rest,
        centre_order[:, :most],
        options.cluster,
        options.text_weight,
    )
    nobody = torch.arange(most, device=members.device) >= centre_count[:, None]
    return Recovery(
        counts=counts,
        visual=visual,
        text=text,
        text_seen=seen,
        factor_visual=factor_visual,
        factor_text=factor_text,
        factor_rest=factor_rest,
        visual_order=visual_order,
        text_order=text_order,
        main=main,
        rest=rest,
        centre_order=centre_order,
        members=members.masked_fill(nobody[..., None], -1),
    )


def budget_counts(own: Counts, tiles: Tensor) -> Counts:
    """Counts that add up to given ones, in the method's own proportions.

    Within a tile visual, recovered and merged tokens keep their proportions. One of the merged
    tokens is the extra one as soon as there are two.

    Args:
        own: what the method would do by itself.
        tiles: int64 `[T]`, CPU, tokens wanted of each tile.
    """
    parts = [own.visual.clamp(min=1), own.main - own.visual, own.centre + own.extra]
    capacity = tiles[:, None].expand(-1, 3)
    visual, text, merged = apportion(torch.stack(parts, 1), capacity, tiles).unbind(1)
    extra = (merged > 1).long()
    return Counts(visual, text, visual + text, merged - extra, extra)
