"""`ImageTokenizer`: an encoder, a quantiser and a decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtc.discrete.adversarial import Adversarial
from vtc.discrete.codes import as_bits, pack_bits, regroup
from vtc.discrete.losses import reconstruction_loss
from vtc.discrete.noise import Noise
from vtc.discrete.quantizers.base import Quantizer
from vtc.discrete.types import CodeSpace, Quantized
from vtc.errors import VTCError


class ImageTokenizer(nn.Module):
    """Images to codes and back.

    Everything is differentiable, the codes by their straight-through gradient, so a loss on
    `encode(image).z` reaches the encoder.

    Args:
        encoder: see `autoencoders`.
        quantizer: for features of the encoder's width.
        decoder: takes `(z, size)`.
        size: `(height, width)` in pixels that `space` and `decode` mean by default.
        parts: show the bits of a token as this many sub-codes (ELM); 0 shows what the quantiser
            gives.
    """

    def __init__(
        self,
        encoder: nn.Module,
        quantizer: Quantizer,
        decoder: nn.Module,
        size: tuple[int, int],
        parts: int = 0,
    ) -> None:
        super().__init__()
        if encoder.dim != quantizer.dim:
            raise VTCError(f"quantizer: has width {quantizer.dim}, the encoder {encoder.dim}")
        self.encoder: Any = encoder
        self.quantizer, self.decoder = quantizer, decoder
        self.size, self.parts = size, parts
        self.recipe: dict[str, Any] = {}
        self.space_of(size)  # a size or parts that do not fit fail here

    @property
    def space(self) -> CodeSpace:
        """The codes of an image of the default size."""
        return self.space_of(self.size)

    def space_of(self, size: Sequence[int]) -> CodeSpace:
        """The codes of an image of `size` pixels.

        Raises:
            VTCError: the size does not divide into tokens.
        """
        raw = self._raw_space(size)
        return raw.split(self.parts) if self.parts else raw

    def _raw_space(self, size: Sequence[int]) -> CodeSpace:
        tokens, grid = self.encoder.code_shape(size)
        return CodeSpace(tokens, self.quantizer.vocab, grid)

    def features(self, image: Tensor) -> Tensor:
        """What is quantised, `[B, N, D]`, of images `[B, C, H, W]` in [-1, 1].

        Raises:
            VTCError: wrong number of channels, or a size that does not divide into tokens.
        """
        channels = self.encoder.channels
        if image.dim() != 4 or image.shape[1] != channels:
            raise VTCError(
                f"image: got shape {tuple(image.shape)}, expected [batch, {channels}, height, width]"
            )
        if not image.is_floating_point():
            raise VTCError(f"image: got {image.dtype}, expected floating point in [-1, 1]")
        self.encoder.code_shape(image.shape[2:])
        return self.encoder(image)

    def encode(self, image: Tensor, noise: Noise | None = None) -> Quantized:
        """Codes of images `[B, C, H, W]` in [-1, 1].

        Raises:
            VTCError: see `features`.
        """
        out = self.quantizer(self.features(image), noise)
        if self.parts:
            out.ids = pack_bits(as_bits(out.ids, self.quantizer.vocab), self.parts)
        return out

    def embed(self, ids: Tensor) -> Tensor:
        """Codes `[B, n, K]` to what the decoder reads, `[B, n, D]`.

        Raises:
            VTCError: no such shape, wrong number of sub-codes or a code out of range.
        """
        if self.parts:
            raw = self._raw_space(self.size)
            ids = regroup(ids, raw.split(self.parts), raw)
        return self.quantizer.embed(ids)

    def decode(self, code: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Images from `Quantized.z` or from ids.

        Args:
            code: `[B, n, D]` floating point, or ids int64 `[B, n, K]`. A decoder of 1-D tokens takes
                a prefix too.
            size: `(height, width)` of the result; 1-D tokens can be drawn at any.

        Returns:
            `[B, C, *size]`, not clamped.

        Raises:
            VTCError: another shape, more tokens than an image has, or a size that does not fit.
        """
        z, space = code if code.is_floating_point() else self.embed(code), self.space
        if z.dim() != 3 or z.shape[-1] != self.quantizer.dim:
            raise VTCError(
                f"code: got shape {tuple(code.shape)} of {code.dtype}, expected z "
                f"[batch, tokens, {self.quantizer.dim}] or ids [batch, tokens, {space.subcodes}]"
            )
        if space.grid is None and z.shape[1] > space.tokens:
            raise VTCError(f"code: got {z.shape[1]} tokens, an image has {space.tokens}")
        return self.decoder(z, tuple(size or self.size))

    def forward(
        self, image: Tensor, noise: Noise | None = None, keep: int = 0
    ) -> tuple[Tensor, Quantized]:
        """The image again, and its codes.

        Args:
            image: `[B, C, H, W]`.
            noise: of quantisers that draw.
            keep: decode only the first tokens of a 1-D code; 0 for all.

        Raises:
            VTCError: see `encode`; `keep` is negative or above the number of tokens.
        """
        out = self.encode(image, noise)
        if not 0 <= keep <= out.z.shape[1]:
            raise VTCError(f"keep: got {keep}, allowed are 0 to {out.z.shape[1]}")
        return self.decoder(out.z[:, : keep or None], tuple(image.shape[2:])), out

    def loss(
        self,
        image: Tensor,
        kind: str = "mse",
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        noise: Noise | None = None,
        keep: int = 0,
        adversarial: Adversarial | None = None,
    ) -> dict[str, Tensor]:
        """`loss` of a training step, its parts for the log, and the quantiser's diagnostics.

        Args:
            image: `[B, C, H, W]`.
            kind: see `losses.reconstruction_loss`.
            perceptual: see there; bring a weight of your own.
            noise: see `forward`.
            keep: see `forward`.
            adversarial: a discriminator that learns along.

        Raises:
            VTCError: see `forward`; the decoder draws no image.
        """
        output, out = self(image, noise, keep)
        if output.dim() != 4:
            raise VTCError(
                "tokenizer: it decodes to an embedding, not to an image; its loss is "
                "losses.distillation_loss(tokenizer, image, teacher)"
            )
        pixels = reconstruction_loss(output, image, kind, perceptual)
        parts = {"reconstruction": pixels.detach(), "quantizer": torch.as_tensor(out.loss).detach()}
        total = pixels + out.loss
        if adversarial is not None:
            last = getattr(self.decoder, "last_layer", None)
            shares = adversarial(output, image, pixels, last)
            total = total + shares.pop("loss")
            parts |= shares
        return {"loss": total, **parts, **out.aux}
