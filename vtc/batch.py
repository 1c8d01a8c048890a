"""`ImageBatch`: several images side by side, for methods that select for all of them at once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vtc.batch_tables import BatchTables, batch_tables
from vtc.checks import passed, thorough
from vtc.errors import VTCError
from vtc.functional.budget import apportion
from vtc.functional.ragged import cat_views, starts_of, to_host, true_places
from vtc.functional.sampling import image_noise
from vtc.selection import Selection
from vtc.tokens import MergeIndex, VisualTokens

if TYPE_CHECKING:
    from vtc.methods.base import Method


class ImageBatch:
    """Images of one call, alike in patch grid and packing, with their tiles in one row.

    What a method does with a batch should take the same number of operations whatever the number
    of images, tiles and patches, and wait for the device once at most (`ragged.to_host`). Numbers that
    follow from the shapes are on the CPU.

    Args:
        images: at least one.
        methods: the method with the budget of each image.
    """

    def __init__(self, images: Sequence[VisualTokens], methods: Sequence[Method]) -> None:
        self.images, self.methods = tuple(images), tuple(methods)
        self.shapes = tuple(image.geometry for image in images)
        self.patch_grid = images[0].patch_grid
        #: tiles of each image
        self.tiles = [shape.tiles for shape in self.shapes]
        #: valid patches of every tile
        self.available = [count for shape in self.shapes for count in shape.available]

    @cached_property
    def budgets(self) -> list[int]:
        """Patch tokens to keep of each image, see `Method.budget`."""
        return [m.budget(image) for m, image in zip(self.methods, self.images, strict=True)]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def _even(self) -> bool:
        """Whether all images have as many tiles, so that rows are a view."""
        return len(set(self.tiles)) == 1

    @cached_property
    def features(self) -> Tensor:
        """`[S, N, D]`."""
        return cat_views([image.features for image in self.images])

    @property
    def signals(self) -> Mapping[str, Tensor]:
        """The signals of the first image; all have the same names."""
        return self.images[0].signals

    def signal(self, name: str) -> Tensor:
        """The signal `name` of all images, `[S, ...]`.

        Raises:
            VTCError: an image lacks it.
        """
        return cat_views([image.signal(name) for image in self.images])

    @property
    def hidden(self) -> bool:
        """Whether the prompt's mask hides some of the tokens."""
        return any(image.packing.hidden for image in self.images)

    @cached_property
    def tables(self) -> BatchTables:
        """Index tables on the device of the features."""
        return batch_tables(self.shapes, self.images[0].features.device)

    def padded(self, values: Tensor, fill: float) -> Tensor:
        """Values of tiles `[S, ...]` as one row an image, `[B, most, ...]`; `fill` in the padding."""
        if self._even:
            return values.unflatten(0, (len(self), self.tiles[0]))
        here = self.tables.here.reshape(*self.tables.here.shape, *[1] * (values.dim() - 1))
        return values[self.tables.slot].masked_fill(~here, fill)

    def unpadded(self, rows: Tensor) -> Tensor:
        """One row an image, `[B, most * N]`, as tiles `[S, N]`: the inverse of `padded`."""
        if self._even:
            return rows.unflatten(1, (self.tiles[0], -1)).flatten(0, 1)
        tiles = rows.unflatten(1, (self.tables.slot.shape[1], -1))
        return tiles[self.tables.image, self.tables.nth]

    def per_image(self, counts: Sequence[int]) -> list[int]:
        """Sums of one number a tile over each image."""
        ends = itertools.accumulate(self.tiles)
        return [sum(counts[end - n : end]) for n, end in zip(self.tiles, ends, strict=True)]

    def noise(self, seed: int, patches: int | None = None) -> Tensor:
        """Float32 `[S, N]` in (0, 1): draws that belong to `seed` and each image's pixels.

        Args:
            patches: N, where it is not that of the tokens.
        """
        seeds = [image.content_seed for image in self.images]
        size = self.tables.slot.shape[1] * (patches or self.tables.valid.shape[1])
        return self.unpadded(image_noise(seed, seeds, size, self.tables.valid.device))

    def shares(self, weights: Tensor | Sequence[float], totals: Sequence[int]) -> Tensor:
        """`budget.apportion` of each image's total among its tiles, by one weight a tile.

        Args:
            weights: CPU `[S]`.
            totals: patch tokens of each image.

        Returns:
            int64 `[S]`, CPU.
        """
        host = batch_tables(self.shapes, torch.device("cpu"))
        weights, capacity = (
            torch.as_tensor(x)[host.slot].masked_fill(~host.here, 0)
            for x in (weights, self.available)
        )
        return apportion(weights, capacity, totals)[host.image, host.nth]

    def newlines(self, place: Tensor, features: Tensor) -> Tensor:
        """What stands at these separators: newlines, zeros where they have another width."""
        newlines = [image.newline for image in self.images]
        first = newlines[0]
        if first is None or first.shape[-1] != features.shape[-1]:
            return features.new_zeros(1).expand(len(place), features.shape[-1])
        if all(newline is first for newline in newlines):  # as in a model
            return first.to(features).expand(len(place), -1)
        image = torch.searchsorted(self.tables.start, place, right=True) - 1
        return torch.stack([n for n in newlines if n is not None])[image].to(features)

    # -- decisions -----------------------------------------------------------------------------

    @property
    def separators(self) -> list[int]:
        """Separators of each image, as it was packed."""
        return [shape.length - shape.patches for shape in self.shapes]

    def keep(self, keep: Tensor, kept: Sequence[int]) -> Selection:
        """Select patches and leave everything else as it was packed: order, separators, positions.

        Args:
            keep: bool `[S, N]`, no padding among them.
            kept: how many that are of each image.

        Raises:
            VTCError: they are others.
        """
        separators = self.separators
        lengths = [k + s for k, s in zip(kept, separators, strict=True)]
        separator = keep.new_ones(1)
        # -1, a separator's source, reads the last entry
        mask = torch.cat([keep.flatten(), separator])[self.tables.origin[0]]
        place = true_places(mask, sum(lengths))
        on_host = mask.device.type == "cpu"
        key = "keep", type(self.methods[0]), self.shapes, mask.device
        if on_host or thorough(*key):
            # places are in rising order: numbers are all that may be wrong
            starts = starts_of([shape.length for shape in self.shapes])
            if np.add.reduceat(to_host(mask).numpy(), starts, dtype=np.int64).tolist() != lengths:
                raise VTCError(f"kept: got {list(kept)}, but the mask keeps other numbers")
            if not on_host:
                passed(*key)
        return Selection(self.shapes, place, lengths, separators, _looked_at=True)

    def keep_all(self) -> Selection:
        """Everything stays."""
        return self.keep(self.tables.valid, [shape.patches for shape in self.shapes])

    def gather(
        self,
        place: Tensor,
        lengths: Sequence[int],
        separators: Sequence[int],
        weight: Tensor | None = None,
    ) -> Selection:
        """Tokens by their place among all packed tokens, image after image.

        Args:
            place: int64 `[M]`.
            lengths: tokens of each image, M together.
            separators: how many of each image's are separators.
            weight: `[M]`, 1 each by default.

        Raises:
            VTCError: places are of other images or occur twice.
        """
        return Selection(self.shapes, place, lengths, separators, weight).checked(self.methods[0])

    def merge(
        self,
        place: Tensor,
        output: Tensor,
        source: Tensor,
        weight: Tensor,
        size: Tensor,
        tokens: Sequence[int],
        entries: Sequence[int],
        *,
        separators: tuple[Tensor, Sequence[int]] | None = None,
        key: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Selection:
        """Merged tokens with their separators, in order.

        Args:
            place: int64 `[M]`, place among all packed tokens of each merged token's main source;
                distinct, not padding.
            output, source, weight: `[K]` entries of the merge: token (counted in this order), source as
                `tile * N + patch` in the batch, coefficient.
            size: float `[M]`, source tokens that each one stands for.
            tokens, entries: of each image, M and K together.
            separators: places of the separators that stay and how many of them each image has; None for
                all.
            key: int64 `[M]`, a token's rank in its image, below its packed length; separators then
                follow behind. None to sort everything by position. Needs images of equal packed length.
            features: `[M, D]` token features that the method has projected itself, instead of the
                weighted sums.

        Returns:
            A selection that counts separators as outputs without sources.
        """
        tables = self.tables
        if separators is None:
            separators = tables.separators, self.separators
        where = torch.cat([place, separators[0]])
        if key is None:
            order = where.argsort()
        else:
            own = tables.origin[3, where]
            behind = own[len(place) :] + len(self.shapes[0].source)
            order = (2 * (where - own) + torch.cat([key, behind])).argsort()
        rank = torch.empty_like(order)
        rank.scatter_(0, order, torch.arange(len(order), device=order.device))
        output, entry = torch.sort(rank[output], stable=True)
        sources = tables.valid.numel()
        if features is not None:
            blank = features.new_zeros(len(separators[0]), features.shape[1])
            features = torch.cat([features, blank])[order]
        ones = torch.ones_like(separators[0], dtype=torch.float32)
        return Selection(
            self.shapes,
            where[order],
            [n + s for n, s in zip(tokens, separators[1], strict=True)],
            separators[1],
            torch.cat([size.float(), ones])[order],
            MergeIndex(output, source[entry], weight[entry].float(), len(order), sources),
            entries,
            features,
            projected=features is not None,
        ).checked(self.methods[0])
