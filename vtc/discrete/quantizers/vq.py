"""Nearest-neighbour vector quantisation with a codebook learned by gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.discrete.codes import code_histogram, perplexity
from vtc.discrete.noise import Noise
from vtc.discrete.quantizers.base import Quantizer, projection, straight_through
from vtc.discrete.types import Quantized


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the closest row of `codebook` `[V, D]` for each `z` `[..., D]`; ties to the lower.

    In float32 at least, autocast or not.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    device = z.device.type if torch.amp.is_autocast_available(z.device.type) else "cpu"
    with torch.no_grad(), torch.autocast(device, enabled=False):
        flat, rows = z.flatten(0, -2).to(dtype), codebook.to(dtype)
        # without |z|^2, which is alike for all rows and so large that their differences would drown
        distance = rows.square().sum(1) - 2 * flat @ rows.transpose(0, 1)
        return distance.argmin(dim=1).view(z.shape[:-1])


def vq_loss(z: Tensor, code: Tensor, beta: float = 0.25, legacy: bool = False) -> Tensor:
    """Codebook loss plus commitment loss.

    Args:
        z: features.
        code: their codes, of the same shape, with gradient to the codebook.
        beta: weight of the commitment (features towards codes).
        legacy: give `beta` to the codebook term instead and the commitment weight 1, as SEED and the
            VQGAN of ELM do.
    """
    commitment = F.mse_loss(z, code.detach())
    codebook = F.mse_loss(code, z.detach())
    return commitment + beta * codebook if legacy else codebook + beta * commitment


class VectorQuantizer(Quantizer):
    """One code a token: the nearest codebook row.

    Args:
        dim: width of the features.
        size: rows of the codebook.
        code_dim: width of a code, `dim` when 0.
        beta: see `vq_loss`.
        legacy: see `vq_loss`.
        weight: of the whole loss.
        head: kind of the maps into and out of the code space, see `projection`.
    """

    def __init__(
        self,
        dim: int,
        size: int,
        code_dim: int = 0,
        beta: float = 0.25,
        legacy: bool = False,
        weight: float = 1.0,
        head: str = "auto",
    ) -> None:
        super().__init__(dim, (size,))
        code_dim = code_dim or dim
        self.beta, self.legacy, self.weight = beta, legacy, weight
        self.down, self.up = projection(dim, code_dim, head), projection(code_dim, dim, head)
        self.codebook = nn.Parameter((2 * torch.rand(size, code_dim) - 1) / size)

    def forward(self, h: Tensor, noise: Noise | None = None) -> Quantized:
        """See `Quantizer.forward`."""
        self._check(h)
        z = self.down(h)
        ids = nearest_code(z, self.codebook)
        code = F.embedding(ids, self.codebook)
        loss = self.weight * vq_loss(z, code, self.beta, self.legacy)
        aux = {"perplexity": perplexity(code_histogram(ids, self.vocab[0]))}
        return Quantized(self.up(straight_through(code, z)), ids.unsqueeze(-1), loss, aux)

    def _embed(self, ids: Tensor) -> Tensor:
        return self.up(F.embedding(ids.squeeze(-1), self.codebook))
