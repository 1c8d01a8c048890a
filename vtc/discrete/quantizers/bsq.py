"""Binary spherical quantisation (BSQ, arXiv 2406.07548) with as many bits as wanted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.discrete.codes import as_bits, bit_entropy, pack_bits
from vtc.discrete.noise import Noise
from vtc.discrete.quantizers.base import Quantizer, projection, straight_through
from vtc.discrete.quantizers.library import LARGEST_GROUP, lfq
from vtc.discrete.types import Quantized
from vtc.errors import VTCError
from vtc.kernels.bit_packing import MOST_BITS


def bsq(dim: int, bits: int, groups: int = 1, entropy: float = 0.005) -> Quantizer:
    """Signs of features on the sphere as bits.

    Up to 16 bits a group the entropy term enumerates the codes of a group and is exact
    (vector-quantize-pytorch); above that it is taken bit by bit, see `SphericalQuantizer`.

    Args:
        dim: width of the features.
        bits: bits a token.
        groups: sub-codes of a token, at most 62 bits each; most significant bit first inside.
        entropy: weight of the entropy term.
    """
    if groups > 0 and bits // groups > LARGEST_GROUP:
        return SphericalQuantizer(dim, bits, groups, entropy)
    return lfq(dim, bits, groups, entropy, spherical=True)


def bitwise_entropy_loss(u: Tensor, scale: float = 200.0) -> Tensor:
    """Entropy of the choices minus entropy of the mean choice, in nats, with a cost of O(n).

    The softmax over all `2 ** n` corners c of `scale * u . c` is one sigmoid a bit, so the first term is
    exact; the second takes the bits as independent.

    Args:
        u: unit vectors `[..., n]`.
        scale: sharpness of the choice.
    """
    chance = torch.sigmoid(2 * scale * u.flatten(0, -2) / u.shape[-1] ** 0.5)

    def entropy(p: Tensor) -> Tensor:
        return (torch.special.entr(p) + torch.special.entr(1 - p)).sum(-1)

    return entropy(chance).mean() - entropy(chance.mean(0))


class SphericalQuantizer(Quantizer):
    """Features on the unit sphere, moved to the nearest corner of a cube in it: their signs.

    Args:
        dim: width of the features.
        bits: bits a token.
        groups: see `bsq`.
        entropy: weight of `bitwise_entropy_loss`.
    """

    def __init__(self, dim: int, bits: int, groups: int = 1, entropy: float = 0.005) -> None:
        if groups < 1 or bits % groups or bits // groups > MOST_BITS:
            raise VTCError(
                f"groups: got {groups} for {bits} bits, allowed are divisors that leave at most "
                f"{MOST_BITS} bits a group"
            )
        super().__init__(dim, (2 ** (bits // groups),) * groups)
        self.bits, self.entropy = bits, entropy
        self.down, self.up = projection(dim, bits), projection(bits, dim)

    def forward(self, h: Tensor, noise: Noise | None = None) -> Quantized:
        """See `Quantizer.forward`."""
        self._check(h)
        u = F.normalize(self.down(h), dim=-1)
        bits = (u > 0).long()
        code = straight_through(self._corner(bits, u), u)
        loss = self.entropy * bitwise_entropy_loss(u)
        ids = pack_bits(bits, len(self.vocab))
        return Quantized(self.up(code), ids, loss, {"bit_entropy": bit_entropy(bits)})

    def _corner(self, bits: Tensor, like: Tensor) -> Tensor:
        return (2 * bits.to(like.dtype) - 1) / self.bits**0.5

    def _embed(self, ids: Tensor) -> Tensor:
        corner = self._corner(as_bits(ids, self.vocab), next(self.parameters(), torch.empty(0)))
        return self.up(corner)
