"""Token-level correlation-guided compression: how repetitive is each crop?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.ragged import to_device, to_host
from vtc.functional.sampling import exponential_race
from vtc.functional.token_correlation import (
    any_of_cell,
    attention_over_patches,
    iqr_fence,
    neighbour_count,
    redundant_patches,
    sampling_number,
)
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods import _fields
from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import SignalRequest


@register_method
@dataclass
class TokenCorrelation(Method):
    """Keeps as many patches of a tile as it holds information, and those CLS looks at.

    A patch is redundant when many others have a similar key in a shallow layer; the share of
    patches that are not redundant is the tile's information density, and density times N patches
    are taken by shallow CLS attention. Every patch whose deep CLS attention is an outlier (above
    Q3 + 1.5 IQR) is added.

    The authors published no code: formulas follow the figure and summaries of the paper, and what
    they leave open is marked [ours].

    Budget: `retention=None` keeps the method's own count. With a number, tiles share the budget in
    proportion to what the method would keep of them, and each tile's ranking (outliers by deep
    attention, then all others by shallow attention) is cut or topped up to exactly its share.
    Padding takes no part anywhere.

    Towers without CLS: the attention each patch receives takes its place [ours].

    DocOwl1.5, the paper's model, makes one token of four patches behind the method: patches are
    judged one by one, and a token stays when any of its patches does [ours]. Other models that fuse
    patches are judged by what the patches of a token have in common.

    Paper: "Token-level Correlation-guided Compression for Efficient Multimodal Document
    Understanding" (arXiv 2407.14439).

    Attributes:
        alpha: 0.57. Cosine similarity of keys above which two patches are alike [ours: the paper's
            threshold is unknown; at this one about 34 % of the crops' patches of the reference
            VLM's validation documents are left, the share the paper reports]. Similarities differ
            from tower to tower: `python -m vtc.eval.calibrate_token_correlation` shows how to set
            it for another.
        beta: 0.1. A patch is redundant when more than this share of its fellows are alike [ours;
            the paper has a count].
        shallow_layer: 0.4. Layer of the keys and of the sampling attention, as a share of the
            depth [ours: by accuracy on the same documents; in the first layers CLS does not look
            at what matters yet].
        deep_layer: -1. Layer of the attention whose outliers stay [ours; the figure shows a deep
            one].
        fence: 1.5. Interquartile ranges above Q3 where outliers begin [ours: the textbook factor].
        thumbnail: False. Whether the thumbnail is compressed too [ours: the figure shows crops
            only]. An image without crops always is; a given budget covers the thumbnail as well.
        sample: False. Draw by shallow attention as the paper does, instead of taking its largest
            values [ours: deterministic by default].
        seed: 0. Of the draw, together with the image's pixels [ours].
    """

    alpha: float = 0.57
    beta: float = 0.1
    shallow_layer: int | float = 0.4
    deep_layer: int | float = -1
    fence: float = 1.5
    thumbnail: bool = False
    sample: bool = False
    seed: int = 0

    name: ClassVar[str] = "token_correlation"
    paper: ClassVar[str] = "arXiv 2407.14439"
    shown: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True
    by_patch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.number("alpha", self.alpha, -1, 1)
        _fields.number("beta", self.beta, 0, 1)
        _fields.number("fence", self.fence, 0)
        _fields.layer("shallow_layer", self.shallow_layer)
        _fields.layer("deep_layer", self.deep_layer)
        _fields.whole("seed", self.seed, 0)

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether the image's content seed is read."""
        return self.sample

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        attention = "cls_attention" if has_cls else self.without_cls["cls_attention"]
        return {
            "shallow_keys": SignalRequest("keys", self.shallow_layer),
            "shallow_attention": SignalRequest(attention, self.shallow_layer),
            "deep_attention": SignalRequest(attention, self.deep_layer),
        }

    def select(self, batch: ImageBatch) -> Selection:
        valid, cell = batch.tables.valid, batch.images[0].cell
        own, ranking = self.rank(batch, _patches(valid, batch.patch_grid, cell))
        if cell != (1, 1):
            own, ranking = any_of_cell(own, ranking, batch.patch_grid, cell)
        if batch.images[0].tile_grid is not None and not self.thumbnail:
            own = own.masked_fill(batch.tables.nth == 0, valid.shape[1])
        counts = to_host(own)
        if not self.counts_itself:
            counts = batch.shares(counts, batch.budgets)
            own = to_device(counts, ranking)
        rank = torch.arange(valid.shape[1], device=valid.device)
        keep = torch.zeros_like(valid).scatter_(1, ranking, rank < own[:, None])
        return batch.keep(keep, batch.per_image(counts.tolist()))

    def rank(self, batch: ImageBatch, valid: Tensor) -> tuple[Tensor, Tensor]:
        """How many patches of each tile the method keeps by itself, and the order it takes them in.

        The drawn patches are the first of the shallow order, so the union with the outliers is a
        prefix of "outliers first, then the shallow order".

        Args:
            batch: the images with their signals.
            valid: bool `[S, P]` on the features' device, patch by patch.

        Returns:
            int64 `[S]` and int64 `[S, P]`, patches by rank with padding last.
        """
        keys = batch.signal("shallow_keys")
        keys = keys[:, keys.shape[1] - valid.shape[1] :]  # drops CLS where there is one
        shallow = attention_over_patches(batch.signal("shallow_attention"), valid)
        deep = attention_over_patches(batch.signal("deep_attention"), valid)

        alike = neighbour_count(keys, self.alpha, valid)
        number = sampling_number(redundant_patches(alike, self.beta, valid), valid)
        if self.sample:
            noise = batch.noise(self.seed, valid.shape[1])
            shallow = exponential_race(shallow, -torch.log(noise))
        local_order, local = segmented_topk(shallow, number, valid)
        outlier = (deep > iqr_fence(deep, valid, self.fence)[:, 2:]) & valid

        # stable sorts: outliers by deep attention in front, all others in the shallow order
        deep_order, _ = segmented_topk(deep, number, outlier)
        place = torch.empty_like(local_order)
        spread = torch.arange(valid.shape[1], device=valid.device).expand_as(place)
        place.scatter_(1, local_order, spread + valid.shape[1])
        deep_place = torch.empty_like(place).scatter_(1, deep_order, spread)
        ranking = torch.where(outlier, deep_place, place).argsort(1)
        return (local | outlier).sum(1), ranking


def _patches(valid: Tensor, patch_grid: tuple[int, int], cell: tuple[int, int]) -> Tensor:
    """A mask of tokens `[T, N]` as one of their patches `[T, P]`."""
    (rows, cols), (down, across) = patch_grid, cell
    grid = valid.view(-1, rows, 1, cols, 1)
    return grid.expand(-1, -1, down, -1, across).flatten(1)
