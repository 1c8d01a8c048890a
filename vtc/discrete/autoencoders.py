"""Image encoders and decoders.

An encoder maps images `[B, 3, H, W]` to features `[B, N, C]`; a decoder maps features and a size
back. `GridEncoder` gives a 2-D grid of tokens, `LatentEncoder` and `QueryEncoder` a 1-D sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.discrete import masks
from vtc.discrete.backbone import Transformer, TransformerConfig, grid_coordinates
from vtc.errors import VTCError

# -- resampling -------------------------------------------------------------------------------------


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


def check_grid(size: Sequence[int], stride: int) -> tuple[int, int]:
    """`(rows, cols)` of an image of `size` pixels at a stride.

    Raises:
        VTCError: the size does not divide.
    """
    height, width = size
    if height < stride or width < stride or height % stride or width % stride:
        raise VTCError(f"size: got {height} x {width} pixels, allowed are multiples of {stride}")
    return height // stride, width // stride


# -- convolutional grid -----------------------------------------------------------------------------


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
        return self.net(image).flatten(2).transpose(1, 2)


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
        """The weight that `losses.adaptive_weight` looks at."""
        return self.net[-1].weight  # type: ignore[return-value]

    def forward(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """`[B, N, dim]` to `[B, 3, *size]`."""
        grid = check_grid(size, self.stride)
        if z.shape[1] != grid[0] * grid[1]:
            raise VTCError(f"size: got {tuple(size)} for {z.shape[1]} tokens, which need another")
        return self.net(z.transpose(1, 2).unflatten(2, grid))


# -- 1-D latents ------------------------------------------------------------------------------------


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
            x = torch.cat([latents, patches.flatten(2).transpose(1, 2)], dim=1)
            x = stage(x, mask=mask, rope=rope)
            latents, patches = x[:, :count], x[:, count:].transpose(1, 2).unflatten(2, grid)
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
        """The weight that `losses.adaptive_weight` looks at."""
        return self.out.weight

    def features(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """`[B, n, dim]` to the last layer's patches `[B, h, w, dim]`, which the image is drawn from
        and which `losses.Alignment` compares with a teacher's."""
        rows, cols = check_grid(size, self.patch * self.scale)
        start = self.mask[None, :, None, None].expand(len(z), -1, rows, cols)
        return self.run(self.enter(z), start)[1].permute(0, 2, 3, 1)

    def forward(self, z: Tensor, size: Sequence[int]) -> Tensor:
        """`[B, n, dim]` to `[B, 3, *size]`."""
        return self.draw(self.features(z, size))

    def draw(self, features: Tensor) -> Tensor:
        """`features` `[B, h, w, dim]` to pixels `[B, 3, h * patch, w * patch]`."""
        pixels = self.out(features)  # [B, h, w, patch * patch * channels]
        pixels = pixels.unflatten(-1, (self.patch, self.patch, -1))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


# -- queries over features --------------------------------------------------------------------------


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
        return self.transformer(self.patches(image).flatten(2).transpose(1, 2))


class TimmEncoder(nn.Module):
    """The features of a timm model, a grid where they are one.

        encoder = TimmEncoder("resnet18", pretrained=True, frozen=True)
        config = GridConfig(width=64, multipliers=(1, 1, 2, 2, 4, 4), dim=encoder.dim)  # stride 32
        quantizer = create_quantizer("fsq", encoder.dim, levels=(8, 8, 8, 5, 5, 5))
        tokenizer = ImageTokenizer(encoder, quantizer, GridDecoder(config), (224, 224))

    Images in [-1, 1] are normalised as the model's configuration says.

    Args:
        name: timm's model name.
        pretrained: load timm's weights.
        frozen: take no gradient, and stay in evaluation mode.
        prefix: keep class and register tokens, which stand for no place of the image.
        options: further arguments of `timm.create_model`.

    Raises:
        VTCError: timm is missing.
    """

    channels = 3
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        frozen: bool = False,
        prefix: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        try:
            import timm
        except (
            ImportError,
            RuntimeError,
        ) as error:  # RuntimeError: a torchvision that does not fit
            raise VTCError(
                f"encoder: {name!r} needs timm, which cannot be imported ({error}); install it with "
                "`pip install vtc-vlm[discrete]`"
            ) from error
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
        self.model, self.dim = model.requires_grad_(not frozen), int(model.num_features)
        self.frozen, self.prefix = frozen, prefix
        normal = getattr(model, "pretrained_cfg", {})
        for key in ("mean", "std"):
            value = torch.tensor(normal.get(key, (0.5, 0.5, 0.5))).view(-1, 1, 1)
            self.register_buffer(key, value, persistent=False)
        self._shapes: dict[tuple[int, ...], tuple[int, tuple[int, int] | None]] = {}
        self.train()

    def train(self, mode: bool = True) -> TimmEncoder:
        """Training mode, unless frozen: then batch norms keep their statistics."""
        return super().train(mode and not self.frozen)

    def code_shape(self, size: Sequence[int]) -> tuple[int, tuple[int, int] | None]:
        """Number of features and their grid, found by running a blank image once a size.

        A sequence is a grid when it has the proportions of the image.

        Raises:
            VTCError: the model does not take the size, or gives no features of its width.
        """
        size = tuple(size)
        if size not in self._shapes:
            blank = next(self.parameters()).new_zeros(1, self.channels, *size)
            modes = [(module, module.training) for module in self.modules()]
            self.eval()
            try:
                with torch.no_grad():
                    features = self._features(blank)
            except (AssertionError, RuntimeError) as error:
                raise VTCError(
                    f"size: got {size}, which the timm model refuses: {error}"
                ) from error
            finally:
                for module, mode in modes:
                    module.training = mode
            self._shapes[size] = features.shape[1:-1].numel(), self._grid(features, size)
        return self._shapes[size]

    def _grid(self, features: Tensor, size: tuple[int, ...]) -> tuple[int, int] | None:
        if features.dim() == 4:
            return features.shape[1], features.shape[2]
        count, (height, width) = features.shape[1], size
        rows = math.isqrt(count * height // width)
        cols = rows * width // height
        return (rows, cols) if rows * cols == count and not self.prefix else None

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` in [-1, 1] to `[B, N, dim]`; maps are read in raster order."""
        return self._features(image).flatten(1, -2)

    def _features(self, image: Tensor) -> Tensor:
        """`[B, N, dim]`, or a map `[B, rows, cols, dim]`."""
        normal = ((image + 1) / 2 - self.mean.to(image)) / self.std.to(image)
        features = self.model.forward_features(normal)
        if features.dim() == 4 and features.shape[1] == self.dim:  # else the channels are last
            features = features.movedim(1, -1)
        if features.dim() not in (3, 4) or features.shape[-1] != self.dim:
            raise VTCError(
                f"name: the timm model gives {tuple(features.shape)}, expected tokens or a map of "
                f"width {self.dim}"
            )
        if features.dim() == 4 or self.prefix:
            return features
        return features[:, getattr(self.model, "num_prefix_tokens", 0) :]


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
