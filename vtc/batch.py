"""`ImageBatch`: several images side by side, for methods that select for all of them at once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vtc.checks import passed, thorough
from vtc.errors import VTCError
from vtc.functional.budget import apportion
from vtc.functional.geometry import Geometry, tables
from vtc.functional.ragged import read, side_by_side, where_true
from vtc.tokens import CompressedTokens, Gathered, MergeIndex, VisualTokens

if TYPE_CHECKING:
    from vtc.methods.base import Method


@dataclass(frozen=True, eq=False)
class BatchTables:
    """Geometry of B images: S tiles of N patches, L packed tokens, images behind each other.

    Attributes:
        image: int64 `[S]`, the image of each tile.
        nth: int64 `[S]`, its number in that image.
        slot: int64 `[B, most]`, the tiles of each image, padded with its first.
        here: bool `[B, most]`, False for that padding.
        valid: bool `[S, N]`, patches that are not padding.
        available: int64 `[S]`, how many of them a tile has.
        packed: int64 `[S, N]`, place of each patch among all packed tokens, -1 for padding.
        origin: int64 `[4, L]`, of each packed token: `tile * N + patch` in the batch, its tile and
            patch in the image (all -1 for separators), its place in the image's packed sequence.
        separators: int64, places of the separators among all packed tokens.
        start: int64 `[B]`, place of each image's first packed token.
        first: int64 `[B]`, each image's first tile.
    """

    image: Tensor
    nth: Tensor
    slot: Tensor
    here: Tensor
    valid: Tensor
    available: Tensor
    packed: Tensor
    origin: Tensor
    separators: Tensor
    start: Tensor
    first: Tensor


@lru_cache(maxsize=16)
def batch_tables(shapes: tuple[Geometry, ...], device: torch.device) -> BatchTables:
    """The tables of images of these shapes on `device`; kept, since calls repeat them."""
    with tables():
        tiles = torch.tensor([shape.tiles for shape in shapes])
        lengths = torch.tensor([len(shape.source) for shape in shapes])
        patches = shapes[0].valid.shape[1]
        first, start = tiles.cumsum(0) - tiles, lengths.cumsum(0) - lengths
        image = torch.arange(len(shapes)).repeat_interleave(tiles)
        nth = torch.arange(len(image)) - first[image]
        column = torch.arange(int(tiles.max()))
        here = column < tiles[:, None]
        of_token = torch.arange(len(shapes)).repeat_interleave(lengths)
        source = torch.cat([shape.source for shape in shapes])
        packed = torch.cat([shape.packed for shape in shapes])
        valid = packed >= 0
        origin = torch.stack(
            [
                torch.where(source < 0, -1, source + first[of_token] * patches),
                torch.where(source < 0, -1, source // patches),
                torch.where(source < 0, -1, source % patches),
                torch.arange(len(source)) - start[of_token],
            ]
        )
        parts = (
            image,
            nth,
            first[:, None] + column * here,
            here,
            valid,
            valid.sum(1),
            torch.where(valid, packed + start[image][:, None], -1),
            origin,
            (source < 0).nonzero().squeeze(1),
            start,
            first,
        )
        return BatchTables(*(part.to(device, non_blocking=True) for part in parts))


def joined(parts: Sequence[Tensor], steps: Tensor) -> Tensor:
    """The images' index tensors behind each other, those of image i moved by `steps[i]`."""
    lengths = torch.tensor([len(part) for part in parts])
    shift = steps.repeat_interleave(lengths).reshape(-1, *[1] * (parts[0].dim() - 1))
    return torch.cat(list(parts)) + shift


class ImageBatch:
    """Images of one call, alike in patch grid and packing, with their tiles in one row.

    What a method does with a batch should take the same number of operations whatever the number
    of images, tiles and patches, and wait for the device once at most (`ragged.read`). Numbers that
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
    def features(self) -> Tensor:
        """`[S, N, D]`."""
        return side_by_side([image.features for image in self.images])

    @property
    def signals(self) -> Mapping[str, Tensor]:
        """The signals of the first image; all have the same names."""
        return self.images[0].signals

    def signal(self, name: str) -> Tensor:
        """The signal `name` of all images, `[S, ...]`.

        Raises:
            VTCError: an image lacks it.
        """
        return side_by_side([image.signal(name) for image in self.images])

    @property
    def hidden(self) -> bool:
        """Whether the prompt's mask hides some of the tokens."""
        return any(image.hidden for image in self.images)

    @cached_property
    def tables(self) -> BatchTables:
        """Index tables on the device of the features."""
        return batch_tables(self.shapes, self.images[0].features.device)

    def rows(self, values: Tensor, fill: float) -> Tensor:
        """Values of tiles `[S, ...]` as one row an image, `[B, most, ...]`; `fill` in the padding."""
        here = self.tables.here.reshape(*self.tables.here.shape, *[1] * (values.dim() - 1))
        return values[self.tables.slot].masked_fill(~here, fill)

    def of_rows(self, rows: Tensor) -> Tensor:
        """One row an image, `[B, most * N]`, as tiles `[S, N]`: the inverse of `rows`."""
        tiles = rows.unflatten(1, (self.tables.slot.shape[1], -1))
        return tiles[self.tables.image, self.tables.nth]

    def per_image(self, counts: Sequence[int]) -> list[int]:
        """Sums of one number a tile over each image."""
        ends = itertools.accumulate(self.tiles)
        return [sum(counts[end - n : end]) for n, end in zip(self.tiles, ends, strict=True)]

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

    def _newlines(self, place: Tensor, features: Tensor) -> Tensor:
        """What stands at these separators: newlines, zeros where they have another width."""
        newlines = [image.newline for image in self.images]
        first = newlines[0]
        if first is None or first.shape[-1] != features.shape[-1]:
            return features.new_zeros(1).expand(len(place), features.shape[-1])
        if all(newline is first for newline in newlines):  # as in a model
            return first.to(features).expand(len(place), -1)
        image = torch.searchsorted(self.tables.start, place, right=True) - 1
        return torch.stack([n for n in newlines if n is not None])[image].to(features)

    # -- putting results together --------------------------------------------------------------

    def keep(self, keep: Tensor, kept: Sequence[int]) -> list[CompressedTokens]:
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
        place = where_true(mask, sum(lengths))
        on_host = mask.device.type == "cpu"
        key = "keep", type(self.methods[0]), self.shapes, mask.device
        if on_host or thorough(*key):
            # places are in rising order: numbers are all that may be wrong
            starts = [0, *itertools.accumulate(shape.length for shape in self.shapes)][:-1]
            if np.add.reduceat(read(mask).numpy(), starts, dtype=np.int64).tolist() != lengths:
                raise VTCError(f"kept: got {list(kept)}, but the mask keeps other numbers")
            if not on_host:
                passed(*key)
        return self._gather(place, lengths, separators, right=on_host)

    @property
    def separators(self) -> list[int]:
        """Separators of each image, as it was packed."""
        return [shape.length - shape.patches for shape in self.shapes]

    def gather(
        self,
        place: Tensor,
        lengths: Sequence[int],
        separators: Sequence[int],
        *,
        features: Tensor | None = None,
        weight: Tensor | None = None,
        merged: Sequence[MergeIndex | None] | None = None,
        sound: bool = False,
    ) -> list[CompressedTokens]:
        """Tokens by their place among all packed tokens, image after image.

        Args:
            place: int64 `[M]`.
            lengths: tokens of each image, M together.
            separators: how many of each image's are separators.
            features: `[M, D]`, instead of the tokens' own; newlines are put in all the same.
            weight: `[M]`, 1 each by default.
            merged: of each image.
            sound: whether merges are in range, weights are numbers, and `features` sums of the tokens'
                own with these weights.

        Raises:
            VTCError: places are of other images or occur twice.
        """
        on_host = place.device.type == "cpu"
        key = "gather", type(self.methods[0]), self.shapes, place.device
        if on_host or thorough(*key):
            self._check_places(place, lengths, separators)
        if not on_host:
            passed(*key)
        right = on_host and (sound or (features is None and weight is None and merged is None))
        return self._gather(place, lengths, separators, features, weight, merged, right)

    def _gather(
        self,
        place: Tensor,
        lengths: Sequence[int],
        separators: Sequence[int],
        features: Tensor | None = None,
        weight: Tensor | None = None,
        merged: Sequence[MergeIndex | None] | None = None,
        right: bool = False,
    ) -> list[CompressedTokens]:
        """`gather` of places that are right; `right`: see `Gathered`."""
        source, tile, patch, own = self.tables.origin[:, place].unbind()
        if features is None:
            features = self.features.flatten(0, 1)[source.clamp(min=0)]
        if any(separators):  # in place: the tokens were gathered a moment ago, by whoever made them
            rows = where_true(source < 0, sum(separators))
            features.index_copy_(0, rows, self._newlines(place[rows], features))
        if weight is None:
            weight = torch.ones_like(source, dtype=torch.float32)
        sizes = list(lengths)
        columns = (x.split(sizes) for x in (features, tile, patch, own, weight))
        out, index = [], [None] * len(self) if merged is None else merged
        for nth, (f, t, p, a, w) in enumerate(zip(*columns, strict=True)):
            m, patches = index[nth], sizes[nth] - separators[nth]
            more = () if m is None else (m.output, m.source, m.weight)
            known = Gathered.of(self.shapes[nth], patches, right, f, t, p, a, w, *more)
            out.append(CompressedTokens(f, t, p, a, w, m, gathered=known))
        return out

    def _check_places(
        self, place: Tensor, lengths: Sequence[int], separators: Sequence[int]
    ) -> None:
        """Whether all places are of the image whose token they give a place, patches each once."""
        where, is_patch = read(place).numpy(), _patches(self.shapes)
        packed = [shape.length for shape in self.shapes]
        try:
            seen = np.bincount(where, minlength=len(is_patch))
        except ValueError:  # a negative place
            seen = where[:0]
        inside = len(seen) == len(is_patch)
        if inside and len(packed) > 1:
            own = where - np.repeat(np.cumsum(packed) - packed, lengths)
            inside = bool(((own >= 0) & (own < np.repeat(packed, lengths))).all())
        if not inside:
            raise VTCError(f"lengths: got {list(lengths)}, but tokens stand in other images")
        seen *= is_patch
        starts = [0, *itertools.accumulate(packed)][:-1]
        found = np.add.reduceat(seen, starts).tolist()
        if np.count_nonzero(seen) != sum(found):
            raise VTCError("place: got a patch twice, expected each once at most")
        if found != [length - n for length, n in zip(lengths, separators, strict=True)]:
            raise VTCError(f"separators: got {list(separators)}, but {found} tokens are patches")


@lru_cache(maxsize=16)
def _patches(shapes: tuple[Geometry, ...]) -> Any:
    """A NumPy array with 1 for every packed token of these images that is a patch, 0 for separators."""
    return np.concatenate([shape.source.numpy() >= 0 for shape in shapes]).astype(np.int64)
