"""Where random numbers come from: a generator, or recorded draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from numbers import Integral

import torch
from torch import Tensor

from vtc.errors import VTCError


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 where `dtype` is that: half precision is too coarse to draw from."""
    return torch.promote_types(dtype, torch.float32)


class Noise:
    """The one source of random numbers of the module.

    Everything that draws takes a `Noise`; with `replay` it hands out recorded tensors instead, in
    order, whatever kind is asked for, so that a run can be repeated number by number. Draws have
    the device of `like` and its dtype, but at least float32.

    Args:
        seed: an int, a `torch.Generator` (of the device the draws are for), or None for torch's
            global generator.
        replay: recorded draws, each broadcast to the shape asked for.

    Raises:
        VTCError: another kind of seed.
    """

    def __init__(
        self, seed: int | torch.Generator | None = None, replay: Iterable[Tensor] | None = None
    ) -> None:
        if isinstance(seed, Integral):  # NumPy's as well
            seed = torch.Generator().manual_seed(int(seed))
        if not (seed is None or isinstance(seed, torch.Generator)):
            raise VTCError(f"seed: got {seed!r}, allowed are whole numbers and a torch.Generator")
        self.generator = seed
        self._replay: Iterator[Tensor] | None = None if replay is None else iter(replay)

    def uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uniform draws in [0, 1)."""
        return self._draw(torch.rand, shape, like)

    def normal(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Standard normal draws."""
        return self._draw(torch.randn, shape, like)

    def gumbel(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Standard Gumbel draws, `-log(-log(u))`."""
        if self._replay is not None:
            return self._recorded(shape, like)
        uniform = self.uniform(shape, like)
        tiny = torch.finfo(uniform.dtype).tiny
        return -(-uniform.clamp(min=tiny).log()).clamp(min=tiny).log()

    def integer(self, high: int, like: Tensor) -> int:
        """One whole number in [0, high)."""
        return min(int(self.uniform((1,), like).item() * high), high - 1)

    def _draw(self, kind: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
        if self._replay is not None:
            return self._recorded(shape, like)
        device = self.generator.device if self.generator is not None else like.device
        dtype = at_least_float32(like.dtype)
        draw = kind(shape, dtype=dtype, device=device, generator=self.generator)
        return draw.to(like.device)

    def _recorded(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        assert self._replay is not None
        value = next(self._replay, None)
        if value is None:
            raise VTCError("replay: more draws are asked for than were recorded")
        return value.to(like.device, at_least_float32(like.dtype)).expand(shape)


def as_noise(source: Noise | int | torch.Generator | None) -> Noise:
    """A `Noise` from whatever a caller may pass."""
    return source if isinstance(source, Noise) else Noise(source)
