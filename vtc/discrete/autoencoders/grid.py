"""Convolutions between pixels and a grid of tokens (the VQGAN family)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtc.errors import VTCError


def check_grid(size: Sequence[int], stride: int) -> tuple[int, int]:
    """`(rows, cols)` of an image of `size` pixels at a stride.

    Raises:
        VTCError: the size does not divide.
    """
    height, width = size
    if height < stride or width < stride or height % stride or width % stride:
        raise VTCError(f"size: got {height} x {width} pixels, allowed are multiples of {stride}")
    return height // stride, width // stride


@dataclass(frozen=True)
class GridConfig:
    """A convolutional autoencoder of the VQGAN family.

    Attributes:
        width: channels of the finest level.
        multipliers: of the width, a level each; all but the last halve the resolution.
        blocks: residual blocks of an encoder level; the decoder has one more.
        dim: width of the features.
        norm_first: group norm of what the decoder reads.
        channels: image channels.
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    dim: int = 256
    norm_first: bool = False
    channels: int = 3

    @property
    def stride(self) -> int:
        """Pixels of a token's side."""
        return 2 ** (len(self.multipliers) - 1)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3 x 3 convolution, twice, with a shortcut."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _group_norm(source), _group_norm(target)
        self.conv1 = nn.Conv2d(source, target, 3, padding=1)
        self.conv2 = nn.Conv2d(target, target, 3, padding=1)
        self.short = nn.Identity() if source == target else nn.Conv2d(source, target, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, source, H, W]` to `[B, target, H, W]`."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.short(x) + self.conv2(F.silu(self.norm2(h)))


class GridAttention(nn.Module):
    """Single-head attention over all positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.out(h.unflatten(2, x.shape[2:]))


class _Shrink(nn.Module):
    """Zero row and column at the far edges, then a stride-2 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def _middle(channels: int) -> list[nn.Module]:
    return [
        ResidualBlock(channels, channels),
        GridAttention(channels),
        ResidualBlock(channels, channels),
    ]


class GridEncoder(nn.Module):
    """Convolutions from pixels to a grid of features, in raster order."""

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        self.stride, self.dim, self.channels = config.stride, config.dim, config.channels
        size = config.width * config.multipliers[0]
        layers: list[nn.Module] = [nn.Conv2d(config.channels, size, 3, padding=1)]
        last = len(config.multipliers) - 1
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.blocks):
                previous, size = size, config.width * multiplier
                layers.append(ResidualBlock(previous, size))
                if level == last:
                    layers.append(GridAttention(size))
            if level < last:
                layers.append(_Shrink(size))
        layers += [*_middle(size), _group_norm(size), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(size, config.dim, 3, padding=1))

    def code_shape(self, size: Sequence[int]) -> tuple[int, tuple[int, int]]:
        """Tokens and grid for an image of `size`."""
        grid = check_grid(size, self.stride)
        return grid[0] * grid[1], grid

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` to `[B, N, dim]`."""
        return rearrange(self.net(image), "b d h w -> b (h w) d")


class GridDecoder(nn.Module):
    """Convolutions from a grid of features to pixels."""

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        self.stride = config.stride
        size = config.width * config.multipliers[-1]
        first = [_group_norm(config.dim)] if config.norm_first else []
        layers: list[nn.Module] = [*first, nn.Conv2d(config.dim, size, 3, padding=1)]
        layers += _middle(size)
        for level in reversed(range(len(config.multipliers))):
            for _ in range(config.blocks + 1):
                previous, size = size, config.width * config.multipliers[level]
                layers.append(ResidualBlock(previous, size))
                if level == len(config.multipliers) - 1:
                    layers.append(GridAttention(size))
            if level:
                layers += [nn.Upsample(scale_factor=2.0), nn.Conv2d(size, size, 3, padding=1)]
        layers += [_group_norm(size), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(size, config.channels, 3, padding=1))

    @property
    def last_layer(self) -> Tensor:
        """The weight that `adversarial.adaptive_weight` looks at."""
        return self.net[-1].weight  # type: ignore[return-value]

    def forward(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """`[B, N, dim]` to `[B, 3, *size]`."""
        grid = check_grid(size, self.stride)
        if z.shape[1] != grid[0] * grid[1]:
            raise VTCError(f"size: got {tuple(size)} for {z.shape[1]} tokens, which need another")
        return self.net(rearrange(z, "b (h w) d -> b d h w", h=grid[0]))
