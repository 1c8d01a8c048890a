"""GlobalCom2: the thumbnail decides how much of each crop is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.functional.anyres import valid_region
from vtc.functional.globalcom2 import Selection, compact_index, select
from vtc.kernels.segmented_topk import segmented_topk
from vtc.methods import _fields
from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.tokens import (
    CompressedTokens,
    SignalRequest,
    VisualTokens,
    gather_tokens,
    keep_patches,
    packed_index,
)


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
    signals: ClassVar[tuple[str, ...]] = ("cls_logits",)

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

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        kind = "cls_logits" if self.score == "logits" else "cls_attention"
        kind = kind if has_cls else self.without_cls[kind]
        return {kind: SignalRequest(kind, self.layer)}

    def scores(self, tokens: VisualTokens) -> Tensor:
        """Float32 `[T, N]`: the score of every patch, by CLS or by its stand-in."""
        kind = "cls_logits" if self.score == "logits" else "cls_attention"
        if kind in tokens.signals or "attention_received" not in tokens.signals:
            return tokens.signal(kind).float()
        received = tokens.signal("attention_received").float()
        if self.score == "probabilities":
            return received
        tiny = torch.finfo(torch.float32).tiny
        return torch.log((received * received.shape[1]).clamp(min=tiny))

    def select(self, tokens: VisualTokens) -> Selection:
        """Budgets and ranking of an image with crops."""
        if tokens.tile_grid is None:
            raise VTCError("tile_grid: got None, budgets are shared among crops")
        total = None if self.tokens is None else self.budget(tokens)
        return select(
            self.scores(tokens),
            tokens.valid,
            tokens.patch_grid,
            tokens.tile_grid,
            self.region(tokens),
            self.ratio if total is None else total / tokens.num_patches,
            total,
            self.tau,
            self.eps,
        )

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        if tokens.tile_grid is None:
            if self.single_tile == "official":
                return keep_patches(tokens, torch.ones_like(tokens.valid))
            budget = torch.tensor([self.budget(tokens)])
            scores = self.scores(tokens)
            keep = segmented_topk(scores.flatten()[None], budget)[1]
            return keep_patches(tokens, keep.view_as(scores))
        chosen = self.select(tokens)
        if tokens.order != "canvas" or tokens.shrink is not None:
            return keep_patches(tokens, chosen.keep)
        return self._assemble(tokens, chosen)

    def _assemble(self, tokens: VisualTokens, chosen: Selection) -> CompressedTokens:
        """Thumbnail tokens, then the canvas row by row with its newlines; index work on the CPU."""
        rows, cols = tokens.patch_grid
        crop_rows, crop_cols = tokens.tile_grid or (0, 0)
        width = crop_cols * cols + 1  # a canvas row and its newline
        packed = packed_index(tokens)
        keep = chosen.keep.cpu()

        thumb = chosen.order[0, : int(chosen.counts[0])].cpu()
        if self.thumbnail_order == "raster":
            thumb = thumb.sort().values

        tile, patch = keep[1:].nonzero(as_tuple=True)
        official = self.placement == "official"
        slot = compact_index(tokens.valid[1:])[tile, patch] if official else patch
        y = tile // crop_cols * rows + slot // cols
        x = tile % crop_cols * cols + slot % cols

        line, line_anchor = self._newlines(tokens, crop_rows * rows)
        place = torch.cat([y * width + x, line * width + width - 1]).argsort()
        none = torch.full_like(line, -1)
        return gather_tokens(
            tokens,
            torch.cat([torch.zeros_like(thumb), torch.cat([tile + 1, none])[place]]),
            torch.cat([thumb, torch.cat([patch, none])[place]]),
            torch.cat([packed[0, thumb], torch.cat([packed[tile + 1, patch], line_anchor])[place]]),
        )

    @staticmethod
    def region(tokens: VisualTokens) -> tuple[int, int, int, int]:
        """`(top, bottom, left, right)`: the part of the canvas that is not padding."""
        crops, grid = tokens.tile_grid or (1, 1), tokens.patch_grid
        canvas = crops[0] * grid[0], crops[1] * grid[1]
        return valid_region(tokens.image_size or canvas, canvas, tokens.unpad)

    def _newlines(self, tokens: VisualTokens, canvas_rows: int) -> tuple[Tensor, Tensor]:
        """Canvas rows that get a newline, and the packed index that gives each its position."""
        layout = tokens.layout
        anchor = ((layout.patch < 0) & (layout.row >= 0)).nonzero().squeeze(1)
        row = layout.row[anchor]
        if self.newline_rows == "valid" or len(row) == 0:
            return row, anchor
        every = torch.arange(canvas_rows)
        return every, anchor[(every - row[0]).clamp(min=0, max=len(row) - 1)]
