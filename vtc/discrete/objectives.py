"""Training objectives of generators: losses over codes `[B, N, K]` or latents `[B, N, C]`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.discrete import flow, masks
from vtc.discrete.codes import as_bits, hamming_soft_labels
from vtc.discrete.losses import soft_cross_entropy
from vtc.discrete.noise import Noise, as_noise, at_least_float32
from vtc.discrete.samplers import Seed, clean_logits
from vtc.discrete.schedules import logit_normal, masked_share, noisy_probability
from vtc.errors import VTCError
from vtc.registry import create

if TYPE_CHECKING:
    from vtc.discrete.condition import Condition
    from vtc.discrete.generator import Generator

Terms = tuple[Tensor, Tensor | None]


class Objective:
    """What a generator learns. A subclass says how hard each position was in `terms`.

    Attributes:
        latents: whether it is for continuous latents instead of codes; of a class, or of an
            instance that learns that from its parts.
    """

    latents: ClassVar[bool] = False

    def loss(
        self,
        model: Generator,
        codes: Tensor,
        given: Condition | Tensor | None = None,
        seed: Seed = None,
    ) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            model: the generator; in training mode it drops a share of the conditions.
            codes: ids `[B, N, K]`, or latents `[B, N, C]`, in raster order.
            given: labels `[B]`, or a `Condition`.
            seed: source of randomness.

        Returns:
            `loss`, a scalar, and `position` `[L]`, the detached mean loss of each position in the
            order of the plan, nan where nothing was predicted.

        Raises:
            VTCError: the codes or the condition do not fit the model, or the batch is empty.
        """
        noise = as_noise(seed)
        if not model.config.channels:
            codes = model.space.check(codes, "codes")
        elif codes.dim() != 3 or codes.shape[-1] != model.config.channels:
            raise VTCError(
                f"codes: got shape {tuple(codes.shape)}, expected [batch, {model.space.tokens}, "
                f"{model.config.channels}]"
            )
        if not len(codes):
            raise VTCError("codes: got an empty batch")
        if self.latents != bool(model.config.channels):
            made = "latents" if model.config.channels else "codes"
            raise VTCError(f"objective: {type(self).__name__} does not fit a model of {made}")
        condition = model.drop(model.condition(given, len(codes)), noise)
        losses, where = self.terms(model, model.plan.arrange(codes), condition, noise)
        weight = torch.ones_like(losses) if where is None else where.to(losses)
        total = losses * weight
        position = total.detach().sum(0) / weight.sum(0)
        return {"loss": total.sum() / weight.sum(), "position": position}

    def terms(self, model: Generator, codes: Tensor, given: Condition, noise: Noise) -> Terms:
        """Losses `[B, L]` of codes in the order of the plan, and where they count (None for all)."""
        raise NotImplementedError


def _code_loss(model: Generator, logits: Tensor, codes: Tensor, hamming: int) -> Tensor:
    """Loss of each token, `[B, N]`, against the code or, by bits, its surroundings."""
    if not hamming:
        return model.head.loss(logits, codes)
    sizes = set(model.space.vocab)
    if hamming < 0 or logits.dim() < 4 or len(sizes) > 1:
        raise VTCError(
            f"hamming: got {hamming}, it needs a positive number, a head with a table of codes and "
            f"equal sub-codes, here {model.config.head!r} over {sizes}"
        )
    bits = as_bits(codes.unsqueeze(-1), (sizes.pop(),))  # [B, N, K, d]
    return soft_cross_entropy(logits, hamming_soft_labels(bits, hamming)).mean(-1)


@dataclass(frozen=True)
class NextToken(Objective):
    """Predict each token from those before it.

    Attributes:
        hamming: 0. Codes up to this many bits away share the target, the nearer the more, see
            `codes.hamming_soft_labels` (ELM); 0 for the one code.
    """

    hamming: int = 0

    def terms(self, model: Generator, codes: Tensor, given: Condition, noise: Noise) -> Terms:
        """See `Objective`."""
        return _code_loss(model, model.next_logits(codes, given), codes, self.hamming), None


@dataclass(frozen=True)
class MaskedToken(Objective):
    """Predict a random share of the tokens from the rest (MaskGIT).

    Attributes:
        schedule: how the share falls over a uniform ratio, see `schedules.masked_share`.
        hamming: 0. As in `NextToken`.
    """

    schedule: str = "cos"
    hamming: int = 0

    def __post_init__(self) -> None:
        masked_share(self.schedule, 0.0)  # an unknown one fails here

    def terms(self, model: Generator, codes: Tensor, given: Condition, noise: Noise) -> Terms:
        """See `Objective`."""
        batch, count = codes.shape[:2]
        ratios = noise.uniform((batch,), torch.empty(0)).tolist()
        masked = [max(1, int(count * masked_share(self.schedule, ratio))) for ratio in ratios]
        unknown = masks.random_mask(batch, count, masked, noise).to(codes.device)
        logits = model.masked_logits(codes, unknown, given)
        return _code_loss(model, logits, codes, self.hamming), unknown


@dataclass(frozen=True)
class NextAll(Objective):
    """Predict everything behind a random cut from the prefix (TokenUnify).

    Attributes:
        strict: hidden positions do not see each other.
    """

    strict: bool = True

    def terms(self, model: Generator, codes: Tensor, given: Condition, noise: Noise) -> Terms:
        """See `Objective`."""
        batch, count = codes.shape[:2]
        cut = noise.integer(count, torch.empty(0))
        unknown = (torch.arange(count, device=codes.device) >= cut).expand(batch, -1)
        mask = masks.next_all(count, cut, self.strict)
        return model.head.loss(model.masked_logits(codes, unknown, given, mask), codes), unknown


@dataclass(frozen=True)
class Mixture(Objective):
    """One of several objectives a batch, drawn by weight: TokenUnify's three are the default.

    It is for what its parts are for, all codes or all latents.

    Attributes:
        parts: the objectives, or what `create_objective` makes one of.
        weights: their chances, equal when empty.
    """

    parts: Sequence[Objective | Mapping[str, Any] | str] = field(
        default_factory=lambda: (MaskedToken(), NextToken(), NextAll())
    )
    weights: Sequence[float] = ()

    def __post_init__(self) -> None:
        parts = tuple(create_objective(part) for part in self.parts)
        if not parts:
            raise VTCError("parts: got none, a mixture needs at least one objective")
        object.__setattr__(self, "parts", parts)
        kinds = {bool(part.latents) for part in parts}
        if len(kinds) > 1:
            told = ", ".join(
                f"{type(part).__name__} ({'latents' if part.latents else 'codes'})"
                for part in parts
            )
            raise VTCError(f"parts: got {told}, allowed are all of codes or all of latents")
        object.__setattr__(self, "latents", kinds.pop())
        if self.weights and len(self.weights) != len(parts):
            raise VTCError(f"weights: got {len(self.weights)} for {len(parts)} objectives")
        if self.weights and not (min(self.weights) >= 0 and 0 < sum(self.weights) < math.inf):
            raise VTCError(f"weights: got {self.weights}, allowed are numbers >= 0, not all 0")

    def terms(self, model: Generator, codes: Tensor, given: Condition, noise: Noise) -> Terms:
        """See `Objective`."""
        weights = torch.tensor(self.weights or [1.0] * len(self.parts))
        edges = weights.cumsum(0) / weights.sum()
        draw = noise.uniform((1,), torch.empty(0))
        part = self.parts[min(int((draw >= edges).sum()), len(self.parts) - 1)]
        return create_objective(part).terms(model, codes, given, noise)


@dataclass(frozen=True)
class BitDiffusion(Objective):
    """Predict which bits of a noisy code were flipped, at logit-normal times (Instella-T2I)."""

    def terms(self, model: Generator, codes: Tensor, given: Condition, noise: Noise) -> Terms:
        """See `Objective`."""
        bits = codes.to(at_least_float32(model.start.dtype))
        t = logit_normal(noise.normal((len(bits),), bits))
        chance = noisy_probability(bits, t[:, None, None])
        noisy = (noise.uniform(tuple(bits.shape), bits) < chance).to(bits.dtype)
        clean = clean_logits(model.flip_logits(noisy, t, given), noisy)
        return F.binary_cross_entropy_with_logits(clean, bits, reduction="none").mean(-1), None


@dataclass(frozen=True)
class NextX(Objective):
    """Flow matching of every group at its own noise level, earlier groups being noisy too (xAR)."""

    latents: ClassVar[bool] = True

    def terms(self, model: Generator, codes: Tensor, given: Condition, noise: Noise) -> Terms:
        """See `Objective`."""
        t = logit_normal(noise.normal((len(codes), model.plan.groups), codes))
        eps = noise.normal(tuple(codes.shape), codes)
        at = t[:, model.plan.group_of().to(t.device)].unsqueeze(-1)
        output = model.velocities(flow.interpolate(codes, eps, at), t, given)
        return model.head.loss(output, flow.velocity(codes, eps, at)), None


#: Objectives by name; `vtc.registry.register` adds others.
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "next_token": NextToken,
    "masked_token": MaskedToken,
    "next_all": NextAll,
    "mixture": Mixture,
    "bit_diffusion": BitDiffusion,
    "next_x": NextX,
}


def create_objective(objective: str | Mapping[str, Any] | Objective, **options: Any) -> Objective:
    """An objective by name, or one of your own as it is.

    Args:
        objective: a name, a mapping of `name` and options (as in a config file), or an `Objective`.
        options: fields of the objective, with a name.

    Raises:
        VTCError: unknown name or option.
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, Mapping):
        options = {**objective, **options}
        objective = options.pop("name", None)
    return create(OBJECTIVES, "objective", str(objective), **options)
