"""Flow matching between data (t = 0) and noise (t = 1)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vtc.errors import VTCError


class Path(NamedTuple):
    """`x_t = alpha * data + sigma * noise`, and the derivatives of both in time."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


def path(t: Tensor, kind: str = "linear") -> Path:
    """Coefficients at time `t`; `kind` is "linear" or "cosine"."""
    if kind == "linear":
        one = torch.ones_like(t)
        return Path(1 - t, t, -one, one)
    if kind == "cosine":
        angle = t * math.pi / 2
        cos, sin = torch.cos(angle), torch.sin(angle)
        return Path(cos, sin, -math.pi / 2 * sin, math.pi / 2 * cos)
    raise VTCError(f"kind: got {kind!r}, available are linear, cosine")


def interpolate(data: Tensor, noise: Tensor, t: Tensor, kind: str = "linear") -> Tensor:
    """`x_t`; `t` broadcasts against the data."""
    at = path(t, kind)
    return at.alpha * data + at.sigma * noise


def velocity(data: Tensor, noise: Tensor, t: Tensor, kind: str = "linear") -> Tensor:
    """`d x_t / dt`, for the linear path `noise - data`."""
    at = path(t, kind)
    return at.d_alpha * data + at.d_sigma * noise


def score_from_velocity(v: Tensor, x: Tensor, t: Tensor, kind: str = "linear") -> Tensor:
    """Score `grad log p_t(x)` of the marginal whose velocity is `v`.

    With noise and data solved from `x = alpha d + sigma e` and `v = alpha' d + sigma' e`, the score
    is `-e / sigma`; on the linear path `-(x + (1 - t) v) / t`.
    """
    at = path(t, kind)
    determinant = at.alpha * at.d_sigma - at.d_alpha * at.sigma
    noise = (at.alpha * v - at.d_alpha * x) / determinant
    return -noise / at.sigma


def diffusion(t: Tensor) -> Tensor:
    """Squared noise rate `2 t` of the Euler-Maruyama sampler (the one that the path implies)."""
    return 2 * t


def euler_times(steps: int) -> Tensor:
    """`steps + 1` times from 1 to 0, float64."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def euler_maruyama_times(steps: int, last: float = 0.04) -> Tensor:
    """`steps` times from 1 to `last`, then 0, float64: the final step is taken without noise."""
    return torch.cat([torch.linspace(1, last, steps, dtype=torch.float64), torch.zeros(1)])
