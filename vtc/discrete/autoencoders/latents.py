"""A transformer that carries an image in a few 1-D tokens (TiTok, Instella-T2I)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtc.discrete import masks
from vtc.discrete.autoencoders.grid import check_grid
from vtc.discrete.backbone import Transformer, TransformerConfig, grid_coordinates


class ResampleDown(nn.Module):
    """Half the resolution: stride-2 convolution plus the mean of each 2 x 2 window."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C, H / 2, W / 2]`."""
        return self.conv(x) + F.avg_pool2d(x, 2)


class ResampleUp(nn.Module):
    """Twice the resolution: convolution and pixel shuffle plus the nearest neighbour."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, 4 * dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C, 2 H, 2 W]`."""
        return F.pixel_shuffle(self.conv(x), 2) + F.interpolate(x, scale_factor=2.0)


@dataclass(frozen=True)
class LatentConfig:
    """A transformer that carries an image in a few 1-D tokens (TiTok, Instella-T2I).

    Attributes:
        latents: tokens of an image.
        patch: pixels of a patch's side.
        encoder: its transformer; `depth` gives the layers of each stage. Between two stages the
            patch grid is halved (encoder) or doubled (decoder). Three rotary axes: index of the
            latent, row, column.
        decoder: its transformer.
        extent: span of the patch coordinates whatever the resolution, see `grid_coordinates`; None
            for plain rows and columns.
        causal: latents see earlier latents only, and patches see no latents (SEED).
        channels: image channels.
    """

    latents: int
    patch: int
    encoder: TransformerConfig
    decoder: TransformerConfig
    extent: float | None = None
    causal: bool = False
    channels: int = 3


def latent_coordinates(latents: int, grid: tuple[int, int], extent: float | None = None) -> Tensor:
    """`[latents + rows * cols, 3]`: latent i at (i, 0, 0), then patch (y, x) at (0, y, x)."""
    first = F.pad(torch.arange(latents).float().unsqueeze(1), (0, 2))
    return torch.cat([first, F.pad(grid_coordinates(grid, extent), (1, 0))])


def _stages(config: TransformerConfig) -> nn.ModuleList:
    """One transformer a stage; the final norm belongs to the last."""
    depths = config.stages
    return nn.ModuleList(
        Transformer(
            replace(
                config, depth=n, final_norm=config.final_norm if k == len(depths) - 1 else "none"
            )
        )
        for k, n in enumerate(depths)
    )


class _LatentStack(nn.Module):
    """Stages over `[latents | patches]` with a change of resolution in between."""

    def __init__(
        self, config: LatentConfig, transformer: TransformerConfig, resample: type[nn.Module]
    ) -> None:
        super().__init__()
        self.extent, self.causal = config.extent, config.causal
        self.stages = _stages(transformer)
        dim = transformer.dim
        self.resample = nn.ModuleList(resample(dim) for _ in range(len(self.stages) - 1))

    def run(self, latents: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, n, D]` and a map `[B, D, h, w]`, to the same two, the map resampled."""
        count = latents.shape[1]
        for index, stage in enumerate(self.stages):
            if index:
                patches = self.resample[index - 1](patches)
            grid = (patches.shape[2], patches.shape[3])
            rope = stage.rope(latent_coordinates(count, grid, self.extent))  # type: ignore[operator]
            mask = masks.causal_queries(count, grid[0] * grid[1]) if self.causal else None
            x = torch.cat([latents, rearrange(patches, "b d h w -> b (h w) d")], dim=1)
            x = stage(x, mask=mask, rope=rope)
            latents = x[:, :count]
            patches = rearrange(x[:, count:], "b (h w) d -> b d h w", h=grid[0])
        return latents, patches


class LatentEncoder(_LatentStack):
    """Patches and learned latents through a transformer; the latents are the code."""

    def __init__(self, config: LatentConfig) -> None:
        super().__init__(config, config.encoder, ResampleDown)
        self.channels, self.dim = config.channels, config.encoder.dim
        self.stride = config.patch * 2 ** len(self.resample)
        self.latents = nn.Parameter(0.02 * torch.randn(config.latents, self.dim))
        self.patches = nn.Conv2d(config.channels, self.dim, config.patch, stride=config.patch)
        self.out = nn.Linear(self.dim, self.dim)

    def code_shape(self, size: Sequence[int]) -> tuple[int, None]:
        """Tokens, whatever the size, and no grid."""
        check_grid(size, self.stride)
        return self.latents.shape[0], None

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` to `[B, latents, dim]`."""
        patches = self.patches(image)
        latents, _ = self.run(self.latents.expand(len(image), -1, -1), patches)
        return self.out(latents)


class LatentDecoder(_LatentStack):
    """Latents and copies of one mask vector through a transformer; the patches become pixels.

    The size is free, and so is the number of latents: fewer than were encoded give a prefix.
    """

    def __init__(self, config: LatentConfig) -> None:
        super().__init__(replace(config, causal=False), config.decoder, ResampleUp)
        dim, self.patch = config.decoder.dim, config.patch
        self.scale = 2 ** len(self.resample)
        self.enter = nn.Sequential(
            nn.RMSNorm(config.encoder.dim, config.encoder.norm_eps),
            nn.Linear(config.encoder.dim, dim),
        )
        self.mask = nn.Parameter(0.02 * torch.randn(dim))
        self.out = nn.Linear(dim, config.channels * config.patch**2)

    @property
    def last_layer(self) -> Tensor:
        """The weight that `adversarial.adaptive_weight` looks at."""
        return self.out.weight

    def features(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """`[B, n, dim]` to the last layer's patches `[B, h, w, dim]`, which the image is drawn from
        and which `losses.Alignment` compares with a teacher's."""
        rows, cols = check_grid(size, self.patch * self.scale)
        start = self.mask[None, :, None, None].expand(len(z), -1, rows, cols)
        return rearrange(self.run(self.enter(z), start)[1], "b d h w -> b h w d")

    def forward(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """`[B, n, dim]` to `[B, 3, *size]`."""
        return self.draw(self.features(z, size))

    def draw(self, features: Tensor) -> Tensor:
        """`features` `[B, h, w, dim]` to pixels `[B, 3, h * patch, w * patch]`."""
        pixels, p = self.out(features), self.patch
        return rearrange(pixels, "b h w (p q c) -> b c (h p) (w q)", p=p, q=p)
