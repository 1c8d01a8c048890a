"""Where random numbers come from: a generator, or recorded draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from vtc.errors import VTCError


class Noise:
    """The one source of random numbers of the module.

    Everything that draws takes a `Noise`; with `replay` it hands out recorded tensors instead, in
    order, whatever kind is asked for, so that a run can be repeated number by number.

    Args:
        seed: an int, a `torch.Generator` (of the device the draws are for), or None for torch's
            global generator.
        replay: recorded draws, each broadcast to the shape asked for.
    """

    def __init__(
        self, seed: int | torch.Generator | None = None, replay: Iterable[Tensor] | None = None
    ) -> None:
        if isinstance(seed, int):
            seed = torch.Generator().manual_seed(seed)
        self.generator = seed
        self._replay: Iterator[Tensor] | None = None if replay is None else iter(replay)

    def uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uniform draws in [0, 1) with the dtype and device of `like`."""
        return self._draw(torch.rand, shape, like)

    def normal(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Standard normal draws."""
        return self._draw(torch.randn, shape, like)

    def gumbel(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Standard Gumbel draws, `-log(-log(u))`."""
        if self._replay is not None:
            return self._recorded(shape, like)
        tiny = torch.finfo(like.dtype).tiny
        uniform = self.uniform(shape, like).clamp(min=tiny)
        return -(-uniform.log()).clamp(min=tiny).log()

    def integer(self, high: int, like: Tensor) -> int:
        """One whole number in [0, high)."""
        return min(int(self.uniform((1,), like.float()).item() * high), high - 1)

    def _draw(self, kind: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
        if self._replay is not None:
            return self._recorded(shape, like)
        device = self.generator.device if self.generator is not None else like.device
        draw = kind(shape, dtype=like.dtype, device=device, generator=self.generator)
        return draw.to(like.device)

    def _recorded(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        assert self._replay is not None
        value = next(self._replay, None)
        if value is None:
            raise VTCError("replay: more draws are asked for than were recorded")
        return value.to(like).expand(shape)


def as_noise(source: Noise | int | torch.Generator | None) -> Noise:
    """A `Noise` from whatever a caller may pass."""
    return source if isinstance(source, Noise) else Noise(source)
