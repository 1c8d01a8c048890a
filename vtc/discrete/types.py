"""What a token is (`CodeSpace`) and what every quantiser returns (`Quantized`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from vtc.errors import VTCError


@dataclass(frozen=True)
class CodeSpace:
    """The discrete code of one image: tokens, the sub-codes of a token, and the grid.

    Tokenizers and generators know nothing of each other; they meet here. Bits are sub-codes of
    vocabulary 2, so binary codes, their packings and plain vector quantisation share everything.

    Attributes:
        tokens: N, tokens an image.
        vocab: vocabulary of each of the K sub-codes of a token; `(2,) * n` for n bits.
        grid: `(rows, cols)` of the tokens in raster order, None for a 1-D code.
    """

    tokens: int
    vocab: tuple[int, ...]
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise VTCError(f"tokens: got {self.tokens}, allowed are whole numbers >= 1")
        if not self.vocab or min(self.vocab) < 2:
            raise VTCError(f"vocab: got {self.vocab}, every sub-code needs at least 2 values")
        if self.grid is not None and self.grid[0] * self.grid[1] != self.tokens:
            raise VTCError(f"grid: got {self.grid} for {self.tokens} tokens")

    @property
    def subcodes(self) -> int:
        """K, sub-codes of a token."""
        return len(self.vocab)

    @property
    def bits(self) -> float:
        """Information of one token in bits."""
        return sum(math.log2(size) for size in self.vocab)

    @property
    def bits_per_image(self) -> float:
        """Information of one image in bits: the fair x-axis when tokenizers are compared."""
        return self.tokens * self.bits

    @property
    def is_binary(self) -> bool:
        """Whether every sub-code is one bit."""
        return set(self.vocab) == {2}

    def split(self, parts: int) -> CodeSpace:
        """The same bits seen as `parts` sub-codes of equal vocabulary (ELM's decomposition).

        Raises:
            VTCError: a vocabulary is no power of two, or the bits do not divide by `parts`.
        """
        bits = sum(bit_width(size) for size in self.vocab)
        if parts < 1 or bits % parts:
            raise VTCError(f"parts: got {parts}, but a token has {bits} bits")
        return replace(self, vocab=(2 ** (bits // parts),) * parts)

    def check(self, ids: Tensor, name: str = "ids") -> Tensor:
        """`ids` `[B, N, K]` as int64, when shape and range fit.

        Raises:
            VTCError: wrong shape, floating point, or a code outside its vocabulary.
        """
        expected = (self.tokens, self.subcodes)
        if ids.dim() != 3 or tuple(ids.shape[1:]) != expected:
            raise VTCError(
                f"{name}: got shape {tuple(ids.shape)}, expected [batch, {expected[0]}, "
                f"{expected[1]}]"
            )
        return check_codes(ids, self.vocab, name)


def check_codes(ids: Tensor, vocab: tuple[int, ...], name: str = "ids") -> Tensor:
    """`ids` `[..., K]` as int64.

    Raises:
        VTCError: not K sub-codes, floating point, or a code outside its vocabulary.
    """
    if ids.is_floating_point():
        raise VTCError(f"{name}: got {ids.dtype}, expected whole numbers")
    if ids.dim() == 0 or ids.shape[-1] != len(vocab):
        raise VTCError(f"{name}: got shape {tuple(ids.shape)}, expected {len(vocab)} sub-codes")
    ids = ids.long()
    if bool(((ids < 0) | (ids >= ids.new_tensor(vocab))).any()):
        raise VTCError(
            f"{name}: got codes in [{int(ids.min())}, {int(ids.max())}], allowed is below {vocab}"
        )
    return ids


def bit_width(vocab: int) -> int:
    """log2 of a power of two.

    Raises:
        VTCError: `vocab` is no power of two.
    """
    if vocab < 2 or vocab & (vocab - 1):
        raise VTCError(f"vocab: got {vocab}, only powers of two can be seen as bits")
    return vocab.bit_length() - 1


@dataclass
class Quantized:
    """What every quantiser returns.

    Attributes:
        z: `[B, N, D]`, what the decoder reads; carries the straight-through gradient.
        ids: int64 `[B, N, K]`.
        loss: scalar, weighted, to be added to the training loss.
        aux: detached diagnostics by name.
    """

    z: Tensor
    ids: Tensor
    loss: Tensor
    aux: dict[str, Tensor] = field(default_factory=dict)
