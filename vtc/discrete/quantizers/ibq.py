"""Index back-propagation: every row of the codebook gets a gradient (IBQ, arXiv 2412.02692)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.discrete.codes import code_histogram, perplexity
from vtc.discrete.noise import Noise
from vtc.discrete.quantizers.base import Quantizer, projection, straight_through
from vtc.discrete.quantizers.vq import vq_loss
from vtc.discrete.types import Quantized


def entropy_loss(probability: Tensor) -> Tensor:
    """Mean entropy of the rows minus the entropy of their mean, `[..., V]` to a scalar in nats.

    Small when each choice is sure and all codes are used.
    """
    flat = probability.flatten(0, -2)
    return torch.special.entr(flat).sum(-1).mean() - torch.special.entr(flat.mean(0)).sum()


class IndexBackpropQuantizer(Quantizer):
    """Softmax over the codebook, rounded to its largest entry with a straight-through gradient.

    Args:
        dim: width of the features.
        size: rows of the codebook.
        code_dim: width of a code, `dim` when 0.
        beta: weight of the commitment term.
        entropy: weight of `entropy_loss`.
        scale: with a positive value the logits are this times the cosine (trains best at small
            scale); 0 takes plain dot products, as published.
    """

    def __init__(
        self,
        dim: int,
        size: int,
        code_dim: int = 0,
        beta: float = 0.25,
        entropy: float = 0.05,
        scale: float = 0.0,
    ) -> None:
        super().__init__(dim, (size,))
        code_dim = code_dim or dim
        self.beta, self.entropy, self.scale = beta, entropy, scale
        self.down, self.up = projection(dim, code_dim), projection(code_dim, dim)
        self.codebook = nn.Parameter(torch.randn(size, code_dim) / code_dim**0.5)

    def forward(self, h: Tensor, noise: Noise | None = None) -> Quantized:
        """See `Quantizer.forward`."""
        self._check(h)
        z, codebook = self._unit(self.down(h)), self._unit(self.codebook)
        probability = ((self.scale or 1.0) * z @ codebook.transpose(0, 1)).softmax(dim=-1)
        ids = probability.argmax(dim=-1)
        choice = F.one_hot(ids, self.vocab[0]).to(probability)
        code = straight_through(choice, probability) @ codebook
        loss = vq_loss(z, code, self.beta) + self.entropy * entropy_loss(probability)
        aux = {"perplexity": perplexity(code_histogram(ids, self.vocab[0]))}
        return Quantized(self.up(code), ids.unsqueeze(-1), loss, aux)

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.scale else x

    def _embed(self, ids: Tensor) -> Tensor:
        return self.up(F.embedding(ids.squeeze(-1), self._unit(self.codebook)))
