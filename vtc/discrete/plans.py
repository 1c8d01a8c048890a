"""Decoding plans: in which order, and in groups of which size, the tokens of a grid are made.

Single tokens, cells, strided subsamples, the whole image and a pyramid of scales are the "X" of
next-X prediction (xAR, arXiv 2502.20388); a plan is a permutation and a list of group sizes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vtc.discrete import masks
from vtc.errors import VTCError
from vtc.registry import entry


@dataclass(frozen=True, eq=False)
class Plan:
    """Order and groups of a token grid.

    Attributes:
        grid: `(rows, cols)`; `(1, N)` for a 1-D code.
        order: int64 `[L]`, raster index of each position of the sequence.
        sizes: group sizes, they sum to L.
        coordinates: float `[L, 2]`, row and column of each position, in units of the grid.
        averages: whether a position may be a mean of tokens, so that it is for latents only.

    Raises:
        VTCError: the order is no permutation of the grid, or sizes and coordinates do not fit it.
    """

    grid: tuple[int, int]
    order: Tensor
    sizes: tuple[int, ...]
    coordinates: Tensor
    averages: ClassVar[bool] = False

    def __post_init__(self) -> None:
        tokens = self.grid[0] * self.grid[1]
        if sorted(self.order.tolist()) != list(range(tokens)):
            raise VTCError(f"order: got {self.order.tolist()}, it is no order of {tokens} tokens")
        if min(self.sizes, default=0) < 1 or self.length != tokens:
            raise VTCError(f"sizes: got {self.sizes}, allowed are numbers >= 1 of sum {tokens}")
        if tuple(self.coordinates.shape) != (tokens, 2):
            raise VTCError(
                f"coordinates: got shape {tuple(self.coordinates.shape)}, expected [{tokens}, 2]"
            )

    @property
    def length(self) -> int:
        """L, positions of the sequence."""
        return sum(self.sizes)

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.sizes)

    @property
    def starts(self) -> list[int]:
        """First position of each group."""
        return [sum(self.sizes[:index]) for index in range(self.groups)]

    def group_of(self) -> Tensor:
        """Int64 `[L]`, the group of each position."""
        return torch.repeat_interleave(torch.arange(self.groups), torch.tensor(self.sizes))

    def mask(self) -> Tensor:
        """Bool `[L, L]`: own group whole, earlier groups whole."""
        return masks.block_causal(self.sizes)

    def arrange(self, x: Tensor) -> Tensor:
        """Raster `[B, N, ...]` into decoding order `[B, L, ...]`."""
        self._check(x, self.grid[0] * self.grid[1])
        return x[:, self.order.to(x.device)]

    def restore(self, x: Tensor) -> Tensor:
        """Decoding order `[B, L, ...]` back to raster `[B, N, ...]`."""
        self._check(x, self.length)
        return x[:, self.order.argsort().to(x.device)]

    def split(self, x: Tensor) -> list[Tensor]:
        """Raster `[B, N, ...]` as one tensor a group."""
        return list(self.arrange(x).split(list(self.sizes), dim=1))

    def merge(self, parts: list[Tensor]) -> Tensor:
        """The groups, in decoding order, back to raster."""
        return self.restore(torch.cat(parts, dim=1))

    @staticmethod
    def _check(x: Tensor, expected: int) -> None:
        if x.shape[1] != expected:
            raise VTCError(f"x: got {x.shape[1]} positions, the plan has {expected}")


@dataclass(frozen=True, eq=False)
class Pyramid(Plan):
    """Area-pooled copies of the grid from coarse to fine, each one group.

    The sequence is longer than the grid; `restore` returns the finest scale, the last group.

    Attributes:
        scales: `(rows, cols)` of each group, the last is the grid.
    """

    averages: ClassVar[bool] = True
    scales: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Nothing of `Plan`'s: the sequence is longer than the grid."""

    def arrange(self, x: Tensor) -> Tensor:
        """Raster `[B, N, C]` into its pooled copies `[B, L, C]`, coarse to fine."""
        self._check(x, self.grid[0] * self.grid[1])
        image = rearrange(x, "b (h w) c -> b c h w", h=self.grid[0])
        pooled = [F.adaptive_avg_pool2d(image, scale).flatten(2) for scale in self.scales]
        return torch.cat(pooled, dim=2).transpose(1, 2)

    def restore(self, x: Tensor) -> Tensor:
        """The finest scale of `[B, L, C]`, `[B, N, C]`."""
        self._check(x, self.length)
        return x[:, -self.sizes[-1] :]


def raster(grid: tuple[int, int]) -> Plan:
    """One token at a time, row by row."""
    return _plan(grid, _raster_index(grid).flatten(), (1,) * (grid[0] * grid[1]))


def whole(grid: tuple[int, int]) -> Plan:
    """The whole image as one group."""
    return _plan(grid, _raster_index(grid).flatten(), (grid[0] * grid[1],))


def cell(grid: tuple[int, int], size: int | tuple[int, int]) -> Plan:
    """Cells of neighbours, `size` a side or `(rows, cols)`: raster of cells, raster inside a cell.

    Raises:
        VTCError: the grid does not divide into such cells.
    """
    r, c = (size, size) if isinstance(size, int) else size
    _divides(grid, (r, c))
    order = rearrange(_raster_index(grid), "(down r) (across c) -> (down across r c)", r=r, c=c)
    return _plan(grid, order, (r * c,) * (len(order) // (r * c)))


def subsample(grid: tuple[int, int], size: int | tuple[int, int]) -> Plan:
    """Strided groups: group (a, b) holds the rows = a and columns = b modulo `size`.

    Raises:
        VTCError: the grid does not divide by the stride.
    """
    r, c = (size, size) if isinstance(size, int) else size
    _divides(grid, (r, c))
    order = rearrange(_raster_index(grid), "(down r) (across c) -> (r c down across)", r=r, c=c)
    return _plan(grid, order, (len(order) // (r * c),) * (r * c))


def pyramid(grid: tuple[int, int]) -> Pyramid:
    """Scales 1, 2, 4, ... up to the grid, each a group.

    Raises:
        VTCError: the grid is not square.
    """
    if grid[0] != grid[1]:
        raise VTCError(f"grid: got {grid}, a pyramid needs a square grid")
    sides = [2**k for k in range(grid[0].bit_length()) if 2**k < grid[0]] + [grid[0]]
    coordinates = []
    for side in sides:
        centre = (torch.arange(side, device="cpu") + 0.5) * grid[0] / side - 0.5
        coordinates.append(torch.cartesian_prod(centre, centre))
    sizes = tuple(side * side for side in sides)
    return Pyramid(
        grid=grid,
        order=_raster_index(grid).flatten(),
        sizes=sizes,
        coordinates=torch.cat(coordinates),
        scales=tuple((side, side) for side in sides),
    )


#: Makers of plans by name, from a grid or from a grid and a size; `vtc.registry.register` adds others.
PLANS: dict[str, Callable[..., Plan]] = {
    "raster": raster,
    "whole": whole,
    "cell": cell,
    "subsample": subsample,
    "pyramid": pyramid,
}


def create_plan(plan: str | Plan, grid: tuple[int, int]) -> Plan:
    """A plan by name, or one of your own as it is.

    Args:
        plan: `raster`, `whole`, `pyramid`, `cell:SIZE` or `subsample:SIZE`, where SIZE is a number or
            `ROWSxCOLS`, as in `cell:2x4`; or a `Plan`.
        grid: what it has to be for.

    Raises:
        VTCError: unknown name, a size that is missing or does not fit the grid, or a `Plan` of another
            grid.
    """
    if isinstance(plan, Plan):
        if plan.grid != tuple(grid):
            raise VTCError(f"plan: got one of grid {plan.grid}, expected {tuple(grid)}")
        return plan
    name, _, text = str(plan).partition(":")
    make = entry(PLANS, "plan", name)
    size = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if (size is not None) != (len(inspect.signature(make).parameters) > 1) or (text and not size):
        raise VTCError(
            f"plan: got {plan!r}, write for example 'cell:2', 'subsample:2x4' or 'raster'"
        )
    return make(grid, (int(size[1]), int(size[2] or size[1]))) if size else make(grid)


def _raster_index(grid: tuple[int, int]) -> Tensor:
    # plans stay on the CPU, also where a model is built on another device
    return torch.arange(grid[0] * grid[1], device="cpu").view(grid)


def _plan(grid: tuple[int, int], order: Tensor, sizes: tuple[int, ...]) -> Plan:
    coordinates = torch.stack([order // grid[1], order % grid[1]], dim=1).float()
    return Plan(grid, order, sizes, coordinates)


def _divides(grid: tuple[int, int], size: tuple[int, int]) -> None:
    if min(size) < 1 or grid[0] % size[0] or grid[1] % size[1]:
        raise VTCError(f"size: got {size}, it does not divide the grid {grid}")
