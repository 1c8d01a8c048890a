"""`Greedy`: methods that pick one patch after another, each by what the picks so far leave."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.batch import ImageBatch
from vtc.errors import VTCError
from vtc.functional.budget import apportion
from vtc.functional.ragged import to_device
from vtc.kernels._ordering import LONGEST
from vtc.kernels.greedy_pick import greedy_pick
from vtc.methods import _fields
from vtc.methods.base import Method
from vtc.selection import Selection
from vtc.tokens import VisualTokens


@dataclass(frozen=True, eq=False)
class Candidates:
    """Patches that compete with each other, in P groups: those of an image, a tile or a part of one.

    Attributes:
        batch: the images.
        parts: how many each tile is cut into; 0 where all tiles of an image are one group.
        counts: picks of each group, `[P]` on the CPU.
    """

    batch: ImageBatch
    parts: int
    counts: Tensor

    def of(self, values: Tensor, fill: float = 0) -> Tensor:
        """Values of patches `[S, N, ...]` as `[P, n, ...]`; `fill` in the padding."""
        if self.parts == 0:
            return self.batch.padded(values, fill).flatten(1, 2)
        if self.parts == 1:
            return values
        more = -values.shape[1] % self.parts
        values = pad(values, [0, 0] * (values.dim() - 2) + [0, more], value=fill)
        return values.unflatten(1, (self.parts, -1)).flatten(0, 1)

    @property
    def valid(self) -> Tensor:
        """Bool `[P, n]`: what is not padding."""
        return self.of(self.batch.tables.valid, False)

    @property
    def image(self) -> Tensor:
        """int64 `[P]`, the image of each group."""
        tables = self.batch.tables
        if self.parts == 0:
            return torch.arange(len(self.batch), device=tables.image.device)
        return tables.image.repeat_interleave(self.parts) if self.parts > 1 else tables.image

    def back(self, values: Tensor) -> Tensor:
        """Values of candidates `[P, n]` as those of patches `[S, N]`: the inverse of `of`."""
        if self.parts == 0:
            return self.batch.unpadded(values)
        if self.parts > 1:
            patches = self.batch.tables.valid.shape[1]
            return values.unflatten(0, (-1, self.parts)).flatten(1)[:, :patches]
        return values

    def pick(self, rule: str, rows: Tensor, weight: Tensor | None = None, **options: Any) -> Picks:
        """See `greedy_pick`; all are `[P, n, ...]`."""
        count, most = to_device(self.counts, rows), max(self.counts.tolist())
        return Picks(self, greedy_pick(rule, rows, count, most, weight, self.valid, **options))


@dataclass(frozen=True, eq=False)
class Picks:
    """The picks of every group in order, `[P, most]`, -1 behind the last."""

    among: Candidates
    order: Tensor

    @property
    def mask(self) -> Tensor:
        """Bool `[S, N]`: which patches they are."""
        size = self.among.valid.shape[1]
        mask = self.order.new_zeros(len(self.order), size + 1, dtype=torch.bool)
        mask = mask.scatter_(1, torch.where(self.order < 0, size, self.order), True)[:, :size]
        return self.among.back(mask)

    @property
    def counts(self) -> list[int]:
        """How many there are of each image."""
        counts, parts = self.among.counts, self.among.parts
        if parts == 0:
            return counts.tolist()
        return self.among.batch.per_image(counts.view(-1, parts).sum(1).tolist())

    def keep(self) -> Selection:
        """What was picked, in the order in which it was packed."""
        return self.among.batch.keep(self.mask, self.counts)


@dataclass
class Greedy(Method):
    """Picks patches one after another, the budget exactly, and keeps them in the order they were packed.

    A method of this kind is its docstring, its fields and `pick`. Padding does not compete, and of equal
    patches the first is picked.

    Attributes:
        scope: "image". Patches compete with all of their image, or with those of their "tile"; tiles
            then share the budget by their patches that are not padding (largest remainders).
    """

    scope: str = dataclasses.field(default="image", kw_only=True)

    #: whether the method holds a number for every two candidates; above 4,096 of an image it then picks
    #: tile by tile, and in parts of larger tiles
    pairs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.one_of("scope", self.scope, ("image", "tile"))

    @abstractmethod
    def pick(self, batch: ImageBatch) -> Picks:
        """The patches that stay, in order."""
        raise VTCError(f"method: {type(self).__name__} must define pick")

    def select(self, batch: ImageBatch) -> Selection:
        return self.pick(batch).keep()

    def kind(self, tokens: VisualTokens) -> tuple[Any, ...]:
        return (*super().kind(tokens), self._parts(tokens))

    def _parts(self, tokens: VisualTokens) -> int:
        tiles, patches, _ = tokens.features.shape
        if self.scope == "image" and (not self.pairs or tiles * patches <= LONGEST):
            return 0
        return -(-patches // LONGEST) if self.pairs else 1

    def candidates(
        self, batch: ImageBatch, weights: Sequence[float] | Tensor | None = None
    ) -> Candidates:
        """Who competes with whom, and how many of each group are picked.

        Args:
            weights: one a tile on the CPU, by which tiles share the budget; their patches by default.
        """
        parts = self._parts(batch.images[0])
        if parts == 0:
            return Candidates(batch, parts, torch.tensor(batch.budgets))
        shares = batch.shares(batch.available if weights is None else weights, batch.budgets)
        if parts > 1:
            valid = torch.cat([shape.valid for shape in batch.shapes])
            valid = pad(valid, (0, -valid.shape[1] % parts)).unflatten(1, (parts, -1))
            shares = apportion(valid.sum(2), valid.sum(2), shares).flatten()
        return Candidates(batch, parts, shares)
