"""Schedules over steps: guidance, masking, learning rate, and bit noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from vtc.errors import VTCError, nearest
from vtc.registry import entry

#: Guidance growth over the ratio r in (0, 1]: the scale is `1 + (scale - 1) * growth(r)`.
GUIDANCE = {
    "constant": lambda r: 1.0,
    "linear": lambda r: r,
    "cos": lambda r: math.sin(math.pi * r / 2),
    "log": lambda r: math.log(1 + r * (math.e - 1)),
    "square": lambda r: r**2,
    "square_root": lambda r: math.sqrt(r),
}


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance `null + scale * (conditional - null)` with a scale that grows.

    Attributes:
        scale: final scale; 1 is the conditional model alone. The `1 + w` of other notations.
        schedule: a key of `GUIDANCE`; with `_from_one` behind it, as in "linear_from_one", it sets
            `from_one` too, for config files.
        from_one: let the first step have scale 1 and the last `scale` (xAR), instead of the ratio
            `(step + 1) / steps` of ELM.
    """

    scale: float = 1.0
    schedule: str = "constant"
    from_one: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.scale, Real) or not math.isfinite(self.scale):
            raise VTCError(f"scale: got {self.scale!r}, allowed are finite numbers")
        schedule = str(self.schedule).removesuffix("_from_one")
        if schedule not in GUIDANCE:
            raise VTCError(
                f"schedule: got {self.schedule!r}, available are {', '.join(GUIDANCE)}, each also "
                f"with '_from_one' behind it{nearest(schedule, GUIDANCE)}"
            )
        object.__setattr__(self, "from_one", self.from_one or schedule != self.schedule)
        object.__setattr__(self, "schedule", schedule)

    def at(self, step: int, steps: int) -> float:
        """Scale of `step` out of `steps`, counted from 0."""
        if self.from_one:
            ratio = step / (steps - 1) if steps > 1 else 1.0
        elif self.schedule == "square_root":
            ratio = step / steps
        else:
            ratio = (step + 1) / steps
        return 1 + (self.scale - 1) * GUIDANCE[self.schedule](ratio)

    def mix(self, rows: Tensor, step: int, steps: int) -> Tensor:
        """Guided output `[B, ...]` of model rows `[conditional | unconditional]`, `[2B, ...]`."""
        conditional, null = rows.chunk(2)
        return null + self.at(step, steps) * (conditional - null)


#: Share of tokens that are masked at a ratio of the way, 1 at the start (MaskGIT).
MASKING: dict[str, Callable[[float], float]] = {
    "cos": lambda r: math.cos(math.pi * r / 2),
    "linear": lambda r: 1 - r,
}


def masked_share(kind: str, ratio: float) -> float:
    """Share of tokens that are masked by a key of `MASKING` at `ratio`, from 0 to 1, of the way."""
    return entry(MASKING, "kind", kind)(ratio)


def masked_count(kind: str, tokens: int, step: int, steps: int) -> int:
    """Tokens that stay masked after `step` (from 0) of `steps`, rounded down.

    In double precision as ELM writes it, so a "linear" count can be one below the exact one: 10 tokens
    in 10 steps are 3, 1, 0, 0 at the end. `MaskGit` settles at least one token a step anyway.
    """
    return math.floor(tokens * masked_share(kind, (step + 1) / steps))


def logit_normal(normal: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Times in (0, 1) from standard normal draws: `sigmoid(mean + std * normal)`."""
    return torch.sigmoid(mean + std * normal)


def warmup_cosine(step: float, lr: float, warmup: float, decay: float, min_lr: float = 0) -> float:
    """Learning rate: linear from 0 over `warmup`, cosine to `min_lr` at `decay`, then `min_lr`."""
    return warmup_constant_cosine(step, lr, warmup, warmup, decay, min_lr)


def warmup_constant_cosine(
    step: float, lr: float, warmup: float, constant: float, end: float, min_lr: float = 0
) -> float:
    """Learning rate: linear over `warmup`, `lr` until `constant`, cosine to `min_lr` at `end`."""
    if step < warmup:
        return lr * step / warmup
    if step < constant:
        return lr
    if step > end:
        return min_lr
    ratio = (step - constant) / max(end - constant, 1)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * ratio))


class BitNoise(NamedTuple):
    """A chain of bit-flipping noise, index 0 is the clean state (binary latent diffusion).

    Attributes:
        keep: `[T + 1]`, chance that a bit still carries its clean value; the rest is a fair coin.
        offset: `[T + 1]`, `(1 - keep) / 2`.
        step: `[T + 1]`, `keep[t] / keep[t - 1]`: the same chance for one step.
    """

    keep: Tensor
    offset: Tensor
    step: Tensor

    def from_clean(self, bits: Tensor, time: Tensor) -> Tensor:
        """Probability of a 1 at `time` `[B]` given the clean `bits` `[B, ...]`."""
        return noisy_probability(bits, 1 - _per_row(self.keep, time, bits))

    def from_previous(self, bits: Tensor, time: Tensor) -> Tensor:
        """Probability of a 1 at `time` given the bits one step before."""
        return noisy_probability(bits, 1 - _per_row(self.step, time, bits))


def bit_noise(kind: str, steps: int) -> BitNoise:
    """Chain of `steps` steps; `kind` is "linear", "cos" or "sigmoid"."""
    ratio = torch.arange(steps + 1, dtype=torch.float64) / steps
    if kind == "linear":
        keep = 1 - ratio
    elif kind == "cos":
        keep = torch.cos(math.pi * ratio / 2) ** 2
    elif kind == "sigmoid":
        curve = torch.sigmoid(3.75 * ratio)  # from 0 to 3 at temperature 0.8
        keep = (curve[-1] - curve) / (curve[-1] - curve[0])
    else:
        raise VTCError(f"kind: got {kind!r}, available are linear, cos, sigmoid")
    step = torch.cat([keep.new_ones(1), keep[1:] / keep[:-1]])
    return BitNoise(keep.float(), (1 - keep).float() / 2, step.float())


def noisy_probability(bits: Tensor, time: Tensor | float) -> Tensor:
    """Probability of a 1 after noise of strength `time`: `(1 - t) * bit + t / 2`.

    `bits` may be probabilities; `time` broadcasts against them. 0 is clean, 1 a fair coin.
    """
    return (1 - time) * bits + time / 2


def _per_row(table: Tensor, time: Tensor, like: Tensor) -> Tensor:
    return table.to(like)[time].reshape(-1, *[1] * (like.dim() - 1))
