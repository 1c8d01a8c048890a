"""GlobalCom2: the thumbnail decides how much of each crop is kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.batch_tables import batch_tables
from vtc.errors import VTCError
from vtc.functional.globalcom2 import Choice, choose, compact_index, crop_tables
from vtc.functional.ragged import joined, starts_of, true_places
from vtc.methods import _fields
from vtc.methods.base import Method
from vtc.methods.scored import keep_best
from vtc.packing import Geometry, Packing, tables
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import SignalRequest, VisualTokens


@register_method
@dataclass
class GlobalCom2(Method):
    """Keeps the patches that CLS attends to; crops get budgets by their share of the thumbnail.

    The thumbnail's scores, summed over the part that each crop shows, go through a softmax and
    shift the retention of the crops around R. Inside a crop its own scores and the resized scores
    of the thumbnail, both at unit length, are added.

    Budget: `retention` follows the official roundings (each tile down), so that an image can end a
    few tokens below `floor(R * patches)`, or above where the crops' budgets say so; `tokens` is met
    exactly, by largest remainders.

    Towers without CLS: the attention each patch receives takes the place of CLS. It is a
    probability p, so `log(N * p)` serves as logit: 0 for a patch that gets the average share, and
    on the scale that `tau` is made for [ours].

    Placement is about the canvas rows of LLaVA-NeXT. Models that string crops together tile after
    tile, or scale the canvas down, keep what is left in the order they packed it; a clip has one
    budget for the best patches of all its frames [ours].

    Paper: Liu et al., "Global Compression Commander: Plug-and-Play Inference Acceleration for
    High-Resolution Large Vision-Language Models" (arXiv 2501.05179, AAAI 2026).
    Code: xuyang-liu16/GlobalCom2 at 96b2d00. The official slip over batches (scores of the second
    image read from wrong rows) is not reproduced.

    Attributes:
        tau: 10.0. Temperature of the softmax over crops, at the scale of logits [code].
        eps: 1e-8. Added to its denominator [code].
        score: "logits". CLS scores before the softmax [code], or "probabilities" behind it [paper
            formulas read literally]; with these all crops get almost the same share.
        placement: "official". Where a kept token stands in the stream of crops: "official" at the
            slot of its place in the crop's un-padded list [code], so that with padding tokens drift
            against newlines and neighbouring crops; "spatial" at its true place [ours]. Provenance
            and anchors are true in both.
        thumbnail_order: "score". The thumbnail's tokens by descending score [code] or in "raster"
            order [ours].
        newline_rows: "all". A newline behind every canvas row [code], or behind "valid" ones only,
            as LLaVA packs them. Newlines of padded rows borrow the anchor of the nearest valid row.
        single_tile: "compress". An image without crops keeps its best patches by the same score, in
            raster order [ours]; "official" leaves it as it is [code].
        layer: -1. Encoder layer of the scores [code: the last].
    """

    tau: float = 10.0
    eps: float = 1e-8
    score: str = "logits"
    placement: str = "official"
    thumbnail_order: str = "score"
    newline_rows: str = "all"
    single_tile: str = "compress"
    layer: int | float = -1

    name: ClassVar[str] = "globalcom2"
    paper: ClassVar[str] = "arXiv 2501.05179"
    shown: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.number("tau", self.tau, 1e-6)
        _fields.number("eps", self.eps, 0)
        _fields.one_of("score", self.score, ("logits", "probabilities"))
        _fields.one_of("placement", self.placement, ("official", "spatial"))
        _fields.one_of("thumbnail_order", self.thumbnail_order, ("score", "raster"))
        _fields.one_of("newline_rows", self.newline_rows, ("all", "valid"))
        _fields.one_of("single_tile", self.single_tile, ("compress", "official"))
        _fields.layer("layer", self.layer)

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """With `retention` the official roundings come first, and weights of crops that may add up to
        more; `single_tile="official"` leaves some images as they are."""
        return self.tokens is not None and self.single_tile == "compress"

    def length(self, image: Packing | VisualTokens) -> int | None:
        packing = image if isinstance(image, Packing) else image.packing
        length = super().length(packing)
        if length is None or self.is_identity(packing) or not _on_canvas(packing):
            return length
        canvas_rows = packing.patch_grid[0] * packing.tile_grid[0]  # type: ignore[index]
        newlines, _ = _newlines(packing.geometry, self.newline_rows, canvas_rows)
        return self.budget(packing) + len(newlines)

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        kind = "cls_logits" if self.score == "logits" else "cls_attention"
        kind = kind if has_cls else self.without_cls[kind]
        return {kind: SignalRequest(kind, self.layer)}

    def scores(self, tokens: VisualTokens | ImageBatch) -> Tensor:
        """Float32 `[T, N]`: the score of every patch, by CLS or by its stand-in."""
        kind = "cls_logits" if self.score == "logits" else "cls_attention"
        if kind in tokens.signals or "attention_received" not in tokens.signals:
            return tokens.signal(kind).float()
        received = tokens.signal("attention_received").float()
        if self.score == "probabilities":
            return received
        tiny = torch.finfo(torch.float32).tiny
        return torch.log((received * received.shape[1]).clamp(min=tiny))

    def choose(self, tokens: VisualTokens) -> Choice:
        """Budgets and ranking of an image with crops."""
        return self._choose(ImageBatch([tokens], [self])).image(0)

    def _choose(self, batch: ImageBatch) -> Choice:
        if batch.images[0].tile_grid is None:
            raise VTCError("tile_grid: got None, budgets are shared among crops")
        totals = None if self.tokens is None else batch.budgets
        ratios = [m.ratio for m in batch.methods]
        if totals is not None:
            ratios = [n / shape.patches for n, shape in zip(totals, batch.shapes, strict=True)]
        return choose(
            batch.padded(self.scores(batch), 0),
            crop_tables(batch.shapes, batch.features.device),
            ratios,
            totals,
            self.tau,
            self.eps,
        )

    def select(self, batch: ImageBatch) -> Selection:
        packing = batch.images[0].packing
        if packing.tile_grid is None:
            if self.single_tile == "official":
                return batch.keep_all()
            return keep_best(batch, self.scores(batch))
        chosen = self._choose(batch)
        kept = chosen.counts.sum(1).tolist()
        if _on_canvas(packing):
            return self._assemble(batch, chosen, kept)
        return batch.keep(batch.unpadded(chosen.keep.flatten(1)), kept)

    def _assemble(self, batch: ImageBatch, chosen: Choice, kept: list[int]) -> Selection:
        """Thumbnail tokens, then the canvas row by row with its newlines."""
        own, packing = batch.tables, (self.placement, self.newline_rows)
        slot, newline_key, newline, newlines = _stream(batch.shapes, *packing, own.image.device)
        patches = slot.shape[1]
        rank = torch.arange(patches, device=slot.device).expand(len(batch.images), -1)
        if self.thumbnail_order == "score":
            rank = torch.empty_like(rank).scatter_(1, chosen.order[:, 0], rank)
        # by image, thumbnails first; a tile's place in the key's range is what `_stream` made of it
        key = torch.where(own.nth[:, None] == 0, slot + rank[own.image], slot)

        keep = batch.unpadded(chosen.keep.flatten(1)).flatten()
        source = true_places(keep, sum(kept))
        order = torch.cat([key.flatten()[source], newline_key]).argsort()
        place = torch.cat([own.packed.flatten()[source], newline])[order]
        lengths = [n + k for n, k in zip(newlines, kept, strict=True)]
        return batch.gather(place, lengths, newlines)

    @staticmethod
    def region(tokens: VisualTokens) -> tuple[int, int, int, int]:
        """`(top, bottom, left, right)`: the part of the canvas that is not padding."""
        return tokens.geometry.region


def _on_canvas(packing: Packing) -> bool:
    """Whether crops lie on a canvas of full size, row by row, as the official code's do."""
    full = packing.order == "canvas" and packing.shrink is None
    return packing.tile_grid is not None and full


@lru_cache(maxsize=16)
def _stream(
    shapes: tuple[Geometry, ...], placement: str, newline_rows: str, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Keys whose order is that of the stream of tokens, image after image.

    Returns:
        int64 `[S, N]`, keys of the patches, the same for all of a thumbnail; keys of the newlines,
        int64; the packed place of the newline that gives each its position; newlines of each image.
    """
    with tables():
        start = batch_tables(shapes, torch.device("cpu")).start
        patch, line, anchor, ends = zip(
            *(_image_stream(shape, placement, newline_rows) for shape in shapes), strict=True
        )
        steps = starts_of(ends)
        keys, lines = joined(patch, steps), joined(line, steps)
        places = joined(anchor, start)
        keys, lines, places = (x.to(device, non_blocking=True) for x in (keys, lines, places))
        return keys, lines, places, [len(x) for x in line]


@lru_cache(maxsize=512)
def _image_stream(
    shape: Geometry, placement: str, newline_rows: str
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Keys of one image's patches and newlines, the newlines' anchors, and an end to the keys."""
    (rows, cols), (crop_rows, crop_cols) = shape.patch_grid, shape.tile_grid or (0, 0)
    width, patches = crop_cols * cols + 1, rows * cols  # a canvas row and its newline
    tile = torch.arange(shape.tiles - 1)[:, None]
    patch = torch.arange(patches)
    slot = compact_index(shape.valid[1:]) if placement == "official" else patch
    y, x = tile // crop_cols * rows + slot // cols, tile % crop_cols * cols + slot % cols
    keys = torch.cat([torch.zeros(1, patches, dtype=torch.int64), patches + y * width + x])
    line, anchor = _newlines(shape, newline_rows, crop_rows * rows)
    end = patches + crop_rows * rows * width
    return keys, patches + line * width + width - 1, anchor, end


def _newlines(shape: Geometry, newline_rows: str, canvas_rows: int) -> tuple[Tensor, Tensor]:
    """Canvas rows that get a newline, and the packed index that gives each its position."""
    layout = shape.layout
    anchor = ((layout.patch < 0) & (layout.row >= 0)).nonzero().squeeze(1)
    row = layout.row[anchor]
    if newline_rows == "valid" or len(row) == 0:
        return row, anchor
    every = torch.arange(canvas_rows)
    return every, anchor[(every - row[0]).clamp(min=0, max=len(row) - 1)]
