"""The features of a timm model as an encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtc.discrete.modes import evaluation
from vtc.errors import VTCError


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
            try:
                with torch.no_grad(), evaluation(self):
                    features = self._features(blank)
            except (AssertionError, RuntimeError) as error:
                raise VTCError(
                    f"size: got {size}, which the timm model refuses: {error}"
                ) from error
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
