"""`Selection`: what a method decided for a batch, and the one place that carries it out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vtc.batch_tables import BatchTables, batch_tables
from vtc.checks import passed, thorough
from vtc.errors import VTCError
from vtc.functional.ragged import starts_of, to_device, to_host, true_places
from vtc.kernels.merge import weighted_merge
from vtc.packing import Geometry
from vtc.tokens import CompressedTokens, Gathered, MergeIndex

if TYPE_CHECKING:
    from vtc.batch import ImageBatch


@dataclass(frozen=True, eq=False)
class Selection:
    """Which tokens of some images go on, in what order, and what merged ones are made of.

    It holds indices alone, so that one decision can be applied to visual features, to the features of
    deeper decoder layers, to hidden states or to positions. B images; L tokens are packed of all
    together, M are left.

    Attributes:
        shapes: index tables of each image.
        place: int64 `[M]`, place of each token among all packed tokens, image after image; of a merged
            token, that of its main source. It gives the position.
        lengths: tokens left of each image, M together.
        separators: how many of them are separators.
        weight: float `[M]`, how many source tokens each stands for; None for 1 each.
        merged: the sources of all M tokens among all tiles, `tile * N + patch` of the batch, by rising
            output; separators have none. None where tokens are only kept.
        entries: entries of `merged` of each image.
        features: `[M, D]`, only where the method makes them itself (by a trained projector); rows of
            separators are filled in.
        projected: whether these already have the language model's width.
    """

    shapes: tuple[Geometry, ...]
    place: Tensor
    lengths: Sequence[int]
    separators: Sequence[int]
    weight: Tensor | None = None
    merged: MergeIndex | None = None
    entries: Sequence[int] = ()
    features: Tensor | None = None
    projected: bool = False
    #: whether places were looked at, and were right
    _looked_at: bool = field(default=False, repr=False)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def tables(self) -> BatchTables:
        """Index tables of the images, where the places are."""
        return batch_tables(self.shapes, self.place.device)

    @property
    def patches(self) -> list[int]:
        """Patch tokens left of each image."""
        return [n - s for n, s in zip(self.lengths, self.separators, strict=True)]

    # -- carrying it out ---------------------------------------------------------------------------

    def take(self, packed: Tensor) -> Tensor:
        """`[M, ...]` of values of all packed tokens `[L, ...]`; merged tokens have their main source's.

        For what belongs to places: positions, separators, features of deeper layers.
        """
        return packed[self.place.to(packed.device)]

    def combine(self, packed: Tensor) -> Tensor:
        """`[M, ...]` of values of all packed tokens `[L, ...]`; merged tokens are the weighted sums.

        For what a language model computes with: hidden states.
        """
        out = self.take(packed)
        if self.merged is None:
            return out
        at = self.tables.packed.flatten()[self.merged.source]
        sums = weighted_merge(packed, self.merged.output, at, self.merged.weight, len(out))
        own = torch.zeros(len(out), dtype=torch.bool, device=out.device)
        own[self.merged.output] = True
        return torch.where(own.view(-1, *[1] * (out.dim() - 1)), sums.to(out), out)

    def apply(self, batch: ImageBatch) -> list[CompressedTokens]:
        """The tokens that are left of each image.

        Args:
            batch: the images, with features.
        """
        source, tile, patch, own = self.tables.origin[:, self.place].unbind()
        features = self._features(batch, source)
        weight = self.weight
        if weight is None:
            weight = torch.ones_like(source, dtype=torch.float32)
        sizes = list(self.lengths)
        columns = (x.split(sizes) for x in (features, tile, patch, own, weight))
        merged = self._merged_of_images()
        right = self._known_right(features, weight)
        out = []
        for nth, (f, t, p, a, w) in enumerate(zip(*columns, strict=True)):
            index = merged[nth]
            more = () if index is None else (index.output, index.source, index.weight)
            patches = sizes[nth] - self.separators[nth]
            known = Gathered.of(self.shapes[nth], patches, right, f, t, p, a, w, *more)
            tokens = CompressedTokens(f, t, p, a, w, index, self.projected, gathered=known)
            out.append(tokens)
        return out

    def _features(self, batch: ImageBatch, source: Tensor) -> Tensor:
        """`[M, D]`, with newlines at separators; zeros where these have another width."""
        if self.features is not None:
            features = self.features
        elif self.merged is not None:
            index, values = self.merged, batch.features.flatten(0, 1)
            features = weighted_merge(
                values, index.output, index.source, index.weight, index.num_outputs
            )
        else:
            features = batch.features.flatten(0, 1)[source.clamp(min=0)]
        if any(self.separators):  # in place: the tokens were gathered a moment ago
            rows = true_places(source < 0, sum(self.separators))
            features.index_copy_(0, rows, batch.newlines(self.place[rows], features))
        return features

    def _merged_of_images(self) -> Sequence[MergeIndex | None]:
        """`merged` image by image, in indices of each."""
        index = self.merged
        if index is None or len(self) == 1:
            return [index] * len(self)
        sources = [shape.valid.numel() for shape in self.shapes]
        table = [self.entries, starts_of(self.lengths), starts_of(sources)]
        entries, first_output, first_source = to_device(table, self.place)
        image = torch.repeat_interleave(entries, output_size=len(index.output))
        output, source = index.output - first_output[image], index.source - first_source[image]
        columns = (x.split(list(self.entries)) for x in (output, source, index.weight))
        return [MergeIndex(*parts) for parts in zip(*columns, self.lengths, sources, strict=True)]

    def _known_right(self, features: Tensor, weight: Tensor) -> bool:
        """Whether tokens are right by how they were made, see `Gathered`: rows of the input or newlines,
        or sums of some with finite weights, which only half precision can overflow."""
        if not self._looked_at or self.place.device.type != "cpu" or self.features is not None:
            return False
        if self.merged is None:
            return self.weight is None or _finite(weight)
        half = features.dtype == torch.float16
        return not half and _finite(weight) and _finite(self.merged.weight)

    # -- one after another -------------------------------------------------------------------------

    def __matmul__(self, then: Selection) -> Selection:
        """This selection, and then another one among what it left, as one selection of the images.

        Args:
            then: of images of as many tokens as are left here, each one tile without separators:
                `Packing((1, most), hidden=...)`, what the shorter ones lack being hidden.

        Raises:
            VTCError: it is of other images, or merges a separator.
        """
        if [shape.length for shape in then.shapes] != list(self.lengths):
            raise VTCError(
                f"then: got a selection among {[shape.length for shape in then.shapes]} tokens, "
                f"here {list(self.lengths)} are left"
            )
        origin = self.tables.origin[0]
        place = self.place[then.place]
        lengths, separators = list(then.lengths), _by_image(origin[place] < 0, then.lengths)
        weight = None if self.weight is None else self.weight[then.place]
        if self.merged is None and then.merged is None:
            return Selection(self.shapes, place, lengths, separators, weight)
        # a product of two sparse matrices: every entry of `then`, once for each entry of its source
        (to, middle, factor), (output, source, share) = then._matrix(), self._matrix()
        counts = torch.bincount(output, minlength=len(self.place))
        first = counts.cumsum(0) - counts
        times = counts[middle]
        entry = torch.arange(len(middle), device=place.device).repeat_interleave(times)
        nth = torch.arange(len(entry), device=place.device) - (times.cumsum(0) - times)[entry]
        at = first[middle[entry]] + nth
        output, source = to[entry], origin[source[at]]
        share = factor[entry] * share[at]
        real = source >= 0
        if bool((~real & (origin[place] >= 0)[output]).any()):
            raise VTCError("then: got a selection that merges separators, they can only be kept")
        if then.merged is not None:
            each = torch.ones(len(self.place), device=place.device)
            size = each if self.weight is None else self.weight
            weight = torch.zeros(len(place), device=place.device)
            weight.index_add_(0, to, size[middle])
        index = MergeIndex(
            output[real], source[real], share[real], len(place), self.tables.valid.numel()
        )
        image = torch.arange(len(self)).repeat_interleave(torch.tensor(lengths))
        entries = torch.bincount(image[to_host(index.output)], minlength=len(self)).tolist()
        return Selection(self.shapes, place, lengths, separators, weight, index, entries)

    def _matrix(self) -> tuple[Tensor, Tensor, Tensor]:
        """Output, packed place and weight of each entry, separators and kept tokens among them, by
        rising output."""
        every = torch.arange(len(self.place), device=self.place.device)
        if self.merged is None:
            return every, self.place, torch.ones_like(every, dtype=torch.float32)
        index = self.merged
        alone = every[self.tables.origin[0, self.place] < 0]
        output = torch.cat([index.output, alone])
        at = self.tables.packed.flatten()[index.source]
        place = torch.cat([at, self.place[alone]])
        weight = torch.cat([index.weight, torch.ones_like(alone, dtype=torch.float32)])
        output, order = output.sort(stable=True)
        return output, place[order], weight[order]

    # -- guards --------------------------------------------------------------------------------------

    def checked(self, method: Any) -> Selection:
        """This selection, once it is known to be one; see `vtc.checks` for when values are looked at.

        Args:
            method: who made it.

        Raises:
            VTCError: numbers do not add up, places are of other images or occur twice, or entries of
                merges are out of range.
        """
        if self._looked_at:
            return self
        if not len(self.shapes) == len(self.lengths) == len(self.separators):
            raise VTCError(
                f"lengths: got {len(self.lengths)}, and {len(self.separators)} separators, for "
                f"{len(self.shapes)} images"
            )
        if self.place.shape != (sum(self.lengths),) or self.place.dtype != torch.long:
            raise VTCError(
                f"place: got {self.place.dtype} {list(self.place.shape)}, expected int64 "
                f"[{sum(self.lengths)}]"
            )
        if self.merged is not None and len(self.merged.output) != sum(self.entries):
            raise VTCError(
                f"entries: got {list(self.entries)}, there are {len(self.merged.output)}"
            )
        on_host = self.place.device.type == "cpu"
        key = "gather", type(method), self.shapes, self.place.device
        if on_host or thorough(*key):
            index, found = self.merged, self.place
            if index is not None:
                found = torch.cat([found, index.output, index.source])
            numbers, places = to_host(found).numpy(), len(self.place)
            self._check_places(numbers[:places])
            if index is not None:
                entries = len(index.output)
                self._check_merged(numbers[places:][:entries], numbers[places + entries :])
            if not on_host:
                passed(*key)
        object.__setattr__(self, "_looked_at", True)
        return self

    def _check_places(self, where: Any) -> None:
        """Whether all places are of the image whose token they give a place, patches each once."""
        is_patch = _patches(self.shapes)
        lengths, separators = list(self.lengths), list(self.separators)
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
            raise VTCError(f"lengths: got {lengths}, but tokens stand in other images")
        seen *= is_patch
        found = np.add.reduceat(seen, starts_of(packed)).tolist()
        if np.count_nonzero(seen) != sum(found):
            raise VTCError("place: got a patch twice, expected each once at most")
        if found != [length - n for length, n in zip(lengths, separators, strict=True)]:
            raise VTCError(f"separators: got {separators}, but {found} tokens are patches")

    def _check_merged(self, output: Any, source: Any) -> None:
        """Whether outputs and sources are in range."""
        sources = sum(shape.valid.numel() for shape in self.shapes)
        for name, value, end in (("output", output, len(self.place)), ("source", source, sources)):
            # negative numbers are the largest of unsigned ones
            if len(value) and value.view(np.uint64).max() >= end:
                raise VTCError(f"merged: got a {name} outside [0, {end})")


@lru_cache(maxsize=16)
def _patches(shapes: tuple[Geometry, ...]) -> Any:
    """A NumPy array with 1 for every packed token of these images that is a patch, 0 for separators."""
    return np.concatenate([shape.source.numpy() >= 0 for shape in shapes]).astype(np.int64)


def _by_image(values: Tensor, lengths: Sequence[int]) -> list[int]:
    """Sums over each image's tokens; waits for the device."""
    return [int(part.sum()) for part in to_host(values).split(list(lengths))]


def _finite(weight: Tensor) -> bool:
    """Whether weights are numbers, as far as no device has to be asked."""
    if weight.device.type != "cpu":
        return False
    plain = weight.detach() if weight.requires_grad else weight
    return math.isfinite(plain.numpy().sum())
