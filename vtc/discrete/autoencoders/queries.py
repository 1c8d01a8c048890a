"""Learned queries that read the features of an image (SEED)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vtc.discrete import masks
from vtc.discrete.autoencoders.grid import check_grid
from vtc.discrete.backbone import Transformer, TransformerConfig
from vtc.errors import VTCError


class PatchEncoder(nn.Module):
    """A plain vision transformer: patches, learned positions, blocks.

    Args:
        config: its transformer.
        patch: pixels of a patch's side.
        size: pixels of the square image.
        channels: image channels.
    """

    def __init__(self, config: TransformerConfig, patch: int, size: int, channels: int = 3) -> None:
        super().__init__()
        self.size, self.dim, self.channels = size, config.dim, channels
        self.patches = nn.Conv2d(channels, config.dim, patch, stride=patch)
        side, _ = check_grid((size, size), patch)
        self.transformer = Transformer(replace(config, positions=side * side))

    def code_shape(self, size: Sequence[int]) -> tuple[int, tuple[int, int]]:
        """Tokens and grid; the size is fixed."""
        if tuple(size) != (self.size, self.size):
            raise VTCError(f"size: got {tuple(size)}, this encoder takes {self.size} x {self.size}")
        grid = check_grid(size, self.patches.stride[0])
        return grid[0] * grid[1], grid

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` to `[B, N, dim]`."""
        return self.transformer(rearrange(self.patches(image), "b d h w -> b (h w) d"))


class QueryEncoder(nn.Module):
    """Learned queries that read features by cross-attention, each seeing only earlier ones (SEED).

    Args:
        queries: how many.
        config: its transformer, with `cross_dim`.
        causal: whether a query sees only itself and earlier ones.
        features: what turns an image into the features; None when they are given.
    """

    def __init__(
        self,
        queries: int,
        config: TransformerConfig,
        causal: bool = True,
        features: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not config.cross_dim:
            raise VTCError("config: a QueryEncoder needs `cross_dim`")
        self.features: Any = features
        self.causal, self.dim = causal, config.dim
        self.channels = getattr(features, "channels", 3)
        self.queries = nn.Parameter(0.02 * torch.randn(queries, config.dim))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.transformer = Transformer(config)

    def code_shape(self, size: Sequence[int]) -> tuple[int, None]:
        """Tokens, whatever the size, and no grid."""
        if self.features is not None:
            self.features.code_shape(size)
        return self.queries.shape[0], None

    def forward(self, source: Tensor) -> Tensor:
        """Images `[B, 3, H, W]`, or features `[B, S, C]` without an encoder, to `[B, queries, dim]`."""
        if self.features is not None:
            source = self.features(source)
        queries = self.norm(self.queries).expand(len(source), -1, -1)
        mask = masks.causal(queries.shape[1]) if self.causal else None
        return self.transformer(queries, mask=mask, source=source)


class EmbeddingDecoder(nn.Module):
    """Tokens to one embedding of the image (SEED's branch to an unCLIP decoder).

    Trained by `losses.distillation_loss`.

    Args:
        config: of the blocks that read the tokens, with `positions`.
        reader: queries that collect what the blocks put out.
        target: width of the embedding.
        separate: `features` come from blocks of their own, as in SEED, not from those of the
            embedding.
    """

    def __init__(
        self,
        config: TransformerConfig,
        reader: QueryEncoder,
        target: int,
        separate: bool = False,
    ) -> None:
        super().__init__()
        self.blocks, self.reader = Transformer(config), reader
        self.out = nn.Linear(reader.dim, target)
        self.branch = Transformer(config) if separate else None

    def features(self, z: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, N, D]`: compared with the continuous queries in training."""
        return (self.branch or self.blocks)(z)

    def forward(self, z: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """`[B, N, D]` to `[B, target]`; `size` means nothing here."""
        return self.out(self.reader(self.blocks(z)).mean(dim=1))
