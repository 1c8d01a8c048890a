"""Training objectives of generators, as losses over codes `[B, N, K]` or latents `[B, N, C]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.discrete import flow, masks, samplers
from vtc.discrete.generator import Condition, Generator
from vtc.discrete.noise import as_noise
from vtc.discrete.schedules import logit_normal, masked_share, noisy_probability
from vtc.errors import VTCError


class Objective(Protocol):
    """What a training loop asks of an objective."""

    def loss(
        self,
        model: Generator,
        codes: Tensor,
        given: Condition | Tensor | None = None,
        seed: samplers.Seed = None,
    ) -> dict[str, Tensor]:
        """`loss`, a scalar, and `position`, the detached mean loss of each position `[L]`, nan where
        nothing was predicted; positions are in the order of the plan.

        Args:
            model: the generator.
            codes: ids `[B, N, K]`, or latents `[B, N, C]`, in raster order.
            given: labels or a `Condition`.
            seed: source of randomness.
        """


@dataclass(frozen=True)
class NextToken:
    """Predict each token from those before it."""

    def loss(
        self,
        model: Generator,
        codes: Tensor,
        given: Condition | Tensor | None = None,
        seed: samplers.Seed = None,
    ) -> dict[str, Tensor]:
        """See `Objective`."""
        given = model.drop_labels(model.condition(given), as_noise(seed))
        ids = model.plan.arrange(model.space.check(codes))
        losses = model.head.loss(model.next_logits(ids, given), ids)
        return _report(losses)


@dataclass(frozen=True)
class MaskedToken:
    """Predict a random share of the tokens from the rest (MaskGIT).

    Attributes:
        schedule: how the share falls over a uniform ratio, see `schedules.masked_share`.
    """

    schedule: str = "cos"

    def loss(
        self,
        model: Generator,
        codes: Tensor,
        given: Condition | Tensor | None = None,
        seed: samplers.Seed = None,
    ) -> dict[str, Tensor]:
        """See `Objective`."""
        noise = as_noise(seed)
        given = model.drop_labels(model.condition(given), noise)
        ids = model.plan.arrange(model.space.check(codes))
        batch, count = ids.shape[:2]
        ratios = noise.uniform((batch,), torch.empty(0)).tolist()
        masked = [max(1, int(count * masked_share(self.schedule, ratio))) for ratio in ratios]
        unknown = masks.random_mask(batch, count, masked, noise).to(ids.device)
        losses = model.head.loss(model.masked_logits(ids, unknown, given), ids)
        return _report(losses, unknown)


@dataclass(frozen=True)
class NextAll:
    """Predict everything behind a random cut from the prefix (TokenUnify).

    Attributes:
        strict: hidden positions do not see each other.
    """

    strict: bool = True

    def loss(
        self,
        model: Generator,
        codes: Tensor,
        given: Condition | Tensor | None = None,
        seed: samplers.Seed = None,
    ) -> dict[str, Tensor]:
        """See `Objective`."""
        noise = as_noise(seed)
        given = model.drop_labels(model.condition(given), noise)
        ids = model.plan.arrange(model.space.check(codes))
        count = ids.shape[1]
        cut = noise.integer(count, torch.empty(0))
        unknown = (torch.arange(count, device=ids.device) >= cut).expand(len(ids), -1)
        mask = masks.next_all(count, cut, self.strict)
        losses = model.head.loss(model.masked_logits(ids, unknown, given, mask), ids)
        return _report(losses, unknown)


@dataclass(frozen=True)
class Mixture:
    """One of several objectives a batch, drawn by weight: TokenUnify's are the default.

    Attributes:
        parts: the objectives.
        weights: their chances, equal when empty.
    """

    parts: Sequence[Objective] = field(
        default_factory=lambda: (MaskedToken(), NextToken(), NextAll())
    )
    weights: Sequence[float] = ()

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.parts):
            raise VTCError(f"weights: got {len(self.weights)} for {len(self.parts)} objectives")

    def loss(
        self,
        model: Generator,
        codes: Tensor,
        given: Condition | Tensor | None = None,
        seed: samplers.Seed = None,
    ) -> dict[str, Tensor]:
        """See `Objective`."""
        noise = as_noise(seed)
        weights = torch.tensor(self.weights or [1.0] * len(self.parts))
        edges = weights.cumsum(0) / weights.sum()
        draw = noise.uniform((1,), torch.empty(0))
        part = self.parts[min(int((draw >= edges).sum()), len(self.parts) - 1)]
        return part.loss(model, codes, given, noise)


@dataclass(frozen=True)
class BitDiffusion:
    """Predict which bits of a noisy code were flipped, at logit-normal times (Instella-T2I)."""

    def loss(
        self,
        model: Generator,
        codes: Tensor,
        given: Condition | Tensor | None = None,
        seed: samplers.Seed = None,
    ) -> dict[str, Tensor]:
        """See `Objective`."""
        noise = as_noise(seed)
        given = model.drop_labels(model.condition(given), noise)
        bits = model.plan.arrange(model.space.check(codes)).to(model.start.dtype)
        t = logit_normal(noise.normal((len(bits),), bits))
        chance = noisy_probability(bits, t[:, None, None])
        noisy = (noise.uniform(tuple(bits.shape), bits) < chance).to(bits.dtype)
        clean = samplers.clean_logits(model.flip_logits(noisy, t, given), noisy)
        losses = F.binary_cross_entropy_with_logits(clean, bits, reduction="none").mean(-1)
        return _report(losses)


@dataclass(frozen=True)
class NextX:
    """Flow matching of every group at its own noise level, earlier groups being noisy too (xAR)."""

    def loss(
        self,
        model: Generator,
        codes: Tensor,
        given: Condition | Tensor | None = None,
        seed: samplers.Seed = None,
    ) -> dict[str, Tensor]:
        """See `Objective`."""
        noise = as_noise(seed)
        data = model.plan.arrange(codes)
        if data.shape[-1] != model.config.channels:
            raise VTCError(
                f"codes: got {data.shape[-1]} channels, the model has {model.config.channels}"
            )
        given = model.drop_labels(model.condition(given), noise)
        t = logit_normal(noise.normal((len(data), model.plan.groups), data))
        eps = noise.normal(tuple(data.shape), data)
        at = t[:, model.plan.group_of().to(t.device)].unsqueeze(-1)
        output = model.velocities(flow.interpolate(data, eps, at), t, given)
        return _report(model.head.loss(output, flow.velocity(data, eps, at)))


OBJECTIVES = {
    "next_token": NextToken,
    "masked_token": MaskedToken,
    "next_all": NextAll,
    "mixture": Mixture,
    "bit_diffusion": BitDiffusion,
    "next_x": NextX,
}


def _report(losses: Tensor, where: Tensor | None = None) -> dict[str, Tensor]:
    """Mean of the losses `[B, L]`, over `where` if given, and their mean at each position."""
    weight = torch.ones_like(losses) if where is None else where.to(losses)
    per_position = (losses * weight).detach().sum(0) / weight.sum(0)
    return {"loss": (losses * weight).sum() / weight.sum(), "position": per_position}
