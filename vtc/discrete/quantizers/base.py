"""What every quantiser has in common."""

from __future__ import annotations

from torch import Tensor, nn

from vtc.discrete.noise import Noise
from vtc.discrete.types import Quantized, check_codes
from vtc.errors import VTCError


class Quantizer(nn.Module):
    """Features to codes and back.

    Attributes:
        dim: width of the features and of `Quantized.z`.
        vocab: vocabulary of each sub-code of a token.
    """

    def __init__(self, dim: int, vocab: tuple[int, ...]) -> None:
        super().__init__()
        self.dim = dim
        self.vocab = vocab

    def forward(self, h: Tensor, noise: Noise | None = None) -> Quantized:
        """Quantise `[B, N, dim]`; `noise` serves the quantisers that draw."""
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        """Codes `[B, N, K]` to what the decoder reads, `[B, N, dim]`.

        Raises:
            VTCError: no such shape, wrong number of sub-codes or a code out of range.
        """
        if ids.dim() != 3:
            raise VTCError(
                f"ids: got shape {tuple(ids.shape)}, expected [batch, tokens, sub-codes]"
            )
        return self._embed(check_codes(ids, self.vocab))

    def _embed(self, ids: Tensor) -> Tensor:
        raise NotImplementedError

    def _check(self, h: Tensor) -> None:
        if h.dim() != 3 or h.shape[-1] != self.dim:
            raise VTCError(f"h: got shape {tuple(h.shape)}, expected [batch, tokens, {self.dim}]")


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, to the bit, with the gradient of `soft`."""
    return hard.detach() + (soft - soft.detach())  # the bracket is 0: a small `hard` is not lost


def projection(source: int, target: int, kind: str = "auto") -> nn.Module:
    """The map into or out of a quantiser's code space.

    Args:
        source: width that goes in.
        target: width that comes out.
        kind: "auto" is the identity where both are equal and linear otherwise; "linear"; "tanh" puts
            a linear map of the source and a tanh before (SEED).
    """
    if kind == "auto":
        return nn.Identity() if source == target else nn.Linear(source, target)
    if kind == "linear":
        return nn.Linear(source, target)
    if kind == "tanh":
        return nn.Sequential(nn.Linear(source, source), nn.Tanh(), nn.Linear(source, target))
    raise VTCError(f"kind: got {kind!r}, available are auto, linear, tanh")
