"""Bits drawn from a Bernoulli distribution, as in Instella-T2I (arXiv 2506.21022) and ELM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc.discrete.codes import bit_entropy
from vtc.discrete.noise import Noise, as_noise
from vtc.discrete.quantizers.base import Quantizer, straight_through
from vtc.discrete.types import Quantized
from vtc.errors import VTCError


def sample_bits(logits: Tensor, uniform: Tensor, temperature: float = 1.0) -> Tensor:
    """1 where `uniform < sigmoid(logits / temperature)`, else 0, in the dtype of the logits."""
    return (uniform < torch.sigmoid(logits / temperature)).to(logits.dtype)


def threshold_bits(logits: Tensor) -> Tensor:
    """1 where the probability is above one half, else 0; a logit of 0 gives 0."""
    return (torch.sigmoid(logits) > 0.5).to(logits.dtype)


def bit_penalty(probability: Tensor) -> Tensor:
    """Mean of `p (1 - p)`: pushes probabilities away from one half."""
    return (probability * (1 - probability)).mean()


class BernoulliQuantizer(Quantizer):
    """n bits a token; the token is the sum of the embeddings of its set bits.

    Training draws the bits, evaluation rounds them. The gradient goes through the probability at
    temperature 1, whatever the temperature of the draw.

    Args:
        dim: width of the features.
        bits: n.
        temperature: divides the logits before the draw; small values draw nearly what they round.
        penalty: weight of `bit_penalty` in the loss; it can collapse the code.
        symmetric: bits count as -1 and +1, squashed by tanh, instead of 0 and 1 by sigmoid.
        draw_in_eval: draw in evaluation as well.
    """

    def __init__(
        self,
        dim: int,
        bits: int,
        temperature: float = 0.1,
        penalty: float = 0.0,
        symmetric: bool = False,
        draw_in_eval: bool = False,
    ) -> None:
        if bits < 1:
            raise VTCError(f"bits: got {bits}, allowed are whole numbers >= 1")
        if temperature <= 0:
            raise VTCError(f"temperature: got {temperature}, allowed are numbers > 0")
        super().__init__(dim, (2,) * bits)
        self.temperature, self.penalty = temperature, penalty
        self.symmetric, self.draw_in_eval = symmetric, draw_in_eval
        self.project = nn.Linear(dim, bits)
        self.table = nn.Parameter(0.02 * torch.randn(bits, dim))

    def forward(self, h: Tensor, noise: Noise | None = None) -> Quantized:
        """See `Quantizer.forward`."""
        self._check(h)
        logits = self.project(h)
        # tanh(x) = 2 sigmoid(2 x) - 1: with the doubled logit both codes have one probability
        if self.symmetric:
            logits = 2 * logits
        probability = torch.sigmoid(logits)
        if self.training or self.draw_in_eval:
            uniform = as_noise(noise).uniform(tuple(logits.shape), logits)
            bits = sample_bits(logits, uniform, self.temperature)
        else:
            bits = threshold_bits(logits)
        value = self._value(straight_through(bits, probability))
        aux = {"bit_entropy": bit_entropy(bits.detach())}
        loss = self.penalty * bit_penalty(probability)
        return Quantized(value @ self.table, bits.detach().long(), loss, aux)

    def _value(self, bits: Tensor) -> Tensor:
        return 2 * bits - 1 if self.symmetric else bits

    def _embed(self, ids: Tensor) -> Tensor:
        return self._value(ids.to(self.table.dtype)) @ self.table
