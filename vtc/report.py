"""What a compressed prefill did: `Report`, with one `ImageReport` per image.

A report is made in every prefill, so it only keeps a few small index tensors; counts and lists are
worked out when somebody reads them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.functional.layer_counts import per_layer
from vtc.packing import Packed, Packing
from vtc.tokens import CompressedTokens, MergeIndex, VisualTokens

if TYPE_CHECKING:
    from rich.table import Table

#: first entry of a saved report
FORMAT = "vtc-report-1"
#: what is reported of an image, properties of `ImageReport`
COUNTS = (
    "sample",
    *(
        f"{what}_{when}"
        for what in ("tokens", "patches", "separators")
        for when in ("before", "after")
    ),
    "retention",
    "average_retention",
    "kv_retention",
    "cuts",
    "per_tile_retention",
    "asked",
    "note",
    "seconds",
)
#: what is worked out once of an image's tokens
_CACHED = ("patches_after", "kept", "kept_at", "per_tile", "share", "group", "read")
#: most lines that images add to the notes of a report
MOST_NOTES = 4


@dataclass(frozen=True)
class LayerCut:
    """What a cut inside the language model has left of an image.

    Attributes:
        layer: the one that it is in front of, counted from 0.
        left: int64 `[M']`, which of the image's tokens in front of any cut, ascending.
    """

    layer: int
    left: Tensor = field(repr=False)


@dataclass(eq=False)
class ImageReport(Packed):
    """One image: what was there, what is left.

    Attributes:
        packing: how the uncompressed sequence was made of tiles; what the prompt's attention mask hides
            is no part of it, nor of the counts.
        tile: int64 `[M]`, source tile of what went on to the language model, -1 for a separator.
        patch: int64 `[M]`, source patch, -1 for a separator; of a merged token its main source.
        weight: float `[M]`, how many source tokens it stands for.
        merged: the sources of merged tokens, None when tokens were only selected.
        fit: how a single tile saw the picture: `"crop"` (the largest centred rectangle of the
            tile's shape, as CLIP's processor does) or `"stretch"`. Thumbnails are stretched.
        seconds: time spent in the selection of the call, divided by its images.
        sample: row of the batch that the image belongs to.
        asked: patch tokens that the setting asked for, be they there or not; None where the method
            counts by itself.
        full: how the sequence would have been made of the picture at the size that the processor gave
            it; None where the picture was not made smaller. `packing` is of the smaller one, and the
            counts before are of this one.
        inside: what the cuts between layers of the language model have left, in their order; none
            where none was made.
        depth: layers of the language model, 0 where no method works inside it.
    """

    packing: Packing
    tile: Tensor = field(repr=False)
    patch: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    merged: MergeIndex | None = field(default=None, repr=False)
    fit: str = "crop"
    seconds: float = 0.0
    sample: int = 0
    asked: int | None = None
    full: Packing | None = None
    inside: tuple[LayerCut, ...] = ()
    depth: int = 0
    #: patch tokens `(before, left)`, where both are known without a look at the device
    _known: tuple[int, int] | None = field(default=None, repr=False)

    @classmethod
    def from_tokens(
        cls,
        tokens: VisualTokens,
        out: CompressedTokens,
        seconds: float = 0.0,
        sample: int = 0,
        fit: str = "crop",
        asked: int | None = None,
        full: Packing | None = None,
    ) -> ImageReport:
        """The report of one call of `Method.compress`; holds no features.

        Args:
            asked: `Method.asked` of these tokens.
            full: of a picture that was made smaller, see `full`.
        """
        left = out.num_patches
        return cls(
            packing=tokens.packing,
            tile=out.tile.detach(),
            patch=out.patch.detach(),
            weight=out.weight.detach(),
            merged=out.merged and replace(out.merged, weight=out.merged.weight.detach()),
            fit=fit,
            seconds=seconds,
            sample=sample,
            asked=asked,
            full=full,
            _known=None if left is None else (full.patches if full else tokens.num_patches, left),
        )

    def cut(self, depth: int, cuts: Sequence[LayerCut]) -> None:
        """Note what was left inside a language model of `depth` layers; counts follow."""
        self.depth, self.inside = depth, tuple(cuts)
        for name in _CACHED:
            vars(self).pop(name, None)

    # -- the shape ---------------------------------------------------------------------------

    @property
    def num_tiles(self) -> int:
        """The thumbnail and the crops, or the frames of a clip."""
        return self.packing.tiles

    # -- counts ------------------------------------------------------------------------------

    @property
    def tokens_before(self) -> int:
        """Length of the uncompressed sequence: patch tokens and separators."""
        return (self.full or self.packing).length

    @property
    def tokens_after(self) -> int:
        """Tokens that are left, behind the last cut."""
        return int(self._tile.numel())

    @property
    def tokens_entering(self) -> int:
        """Length of what went on to the language model, in front of any cut."""
        return int(self.tile.numel())

    @property
    def patches_before(self) -> int:
        """Patch tokens of the uncompressed sequence, without padding: the base of `retention`."""
        return (self.full or self.packing).patches

    @cached_property
    def patches_after(self) -> int:
        """Patch tokens that are left, merged ones included; behind the last cut."""
        return int((self._patch >= 0).sum())

    @property
    def separators_before(self) -> int:
        """Separators (newlines) of the uncompressed sequence."""
        return self.tokens_before - self.patches_before

    @property
    def separators_after(self) -> int:
        """Separators that are left."""
        return self.tokens_after - self.patches_after

    @property
    def retention(self) -> float:
        """Share of patch tokens that are left."""
        return self.patches_after / max(self.patches_before, 1)

    @property
    def cuts(self) -> list[tuple[int, int]]:
        """`(layer, tokens)` of every cut inside the language model: in front of which layer, counted
        from 0, and what it has left of the image, separators included."""
        return [(cut.layer, len(cut.left)) for cut in self.inside]

    @property
    def average_retention(self) -> float:
        """Patch tokens that enter a layer of the language model, averaged over layers, as a share of
        those of the uncompressed sequence; `retention` where no cut was made."""
        patches = [int((self.patch >= 0).sum())]
        patches += [
            int((self.patch[cut.left.to(self.patch.device)] >= 0).sum()) for cut in self.inside
        ]
        return self._averaged(patches) / max(self.patches_before, 1)

    @property
    def kv_retention(self) -> float:
        """The same of all its tokens: the share of their keys and values that the caches of the layers
        hold."""
        tokens = [self.tokens_entering, *(tokens for _, tokens in self.cuts)]
        return self._averaged(tokens) / max(self.tokens_before, 1)

    def _averaged(self, counts: Sequence[int]) -> float:
        """A count in front of the cuts and behind each, averaged over layers."""
        if not self.inside:
            return counts[0]
        layers = [cut.layer for cut in self.inside]
        return sum(per_layer(counts[0], layers, counts[1:], self.depth)) / self.depth

    @property
    def note(self) -> str:
        """What became of a budget in front of the language model that was not met to the token; empty
        where it was."""
        return _note(self.asked, self.patches_before, int((self.patch >= 0).sum()))

    @cached_property
    def kept(self) -> list[tuple[int, int, int]]:
        """`(tile, row, col)` of every patch token that is left, in the order of the sequence; behind
        the last cut."""
        return self._places(self._tile, self._patch)

    @cached_property
    def kept_at(self) -> list[list[tuple[int, int, int]]]:
        """The same behind each cut inside the language model."""
        tile, patch = self.tile.cpu(), self.patch.cpu()
        return [self._places(tile[cut.left], patch[cut.left]) for cut in self.inside]

    def _places(self, tile: Tensor, patch: Tensor) -> list[tuple[int, int, int]]:
        tile, patch = tile.cpu(), patch.cpu()
        real = patch >= 0
        cols = self.patch_grid[1]
        rows = torch.stack([tile[real], patch[real] // cols, patch[real] % cols], 1)
        return [(t, r, c) for t, r, c in rows.tolist()]

    @property
    def _tile(self) -> Tensor:
        return (
            self.tile if not self.inside else self.tile[self.inside[-1].left.to(self.tile.device)]
        )

    @property
    def _patch(self) -> Tensor:
        if not self.inside:
            return self.patch
        return self.patch[self.inside[-1].left.to(self.patch.device)]

    @cached_property
    def per_tile(self) -> list[tuple[int, int]]:
        """`(patch tokens left, patch tokens before)` of each tile."""
        after, before = (
            torch.bincount(tile[patch >= 0], minlength=self.num_tiles).tolist()
            for tile, patch in (
                (self._tile.cpu(), self._patch.cpu()),
                (self.layout.tile, self.layout.patch),
            )
        )
        return list(zip(after, before, strict=True))

    @property
    def per_tile_retention(self) -> list[float]:
        """Share of patch tokens left in each tile; 0 for a tile that is all padding."""
        return [after / before if before else 0.0 for after, before in self.per_tile]

    # -- maps for pictures -------------------------------------------------------------------

    @cached_property
    def share(self) -> Tensor:
        """Float `[T, N]`: how much of a token each source patch owns.

        1 for a patch that has a token to itself; for a merged one its part of the token's weights,
        summed over the tokens it is in, at most 1; 0 for a dropped patch; -1 for padding.
        """
        tiles, patches = self.num_tiles, self.patch_grid[0] * self.patch_grid[1]
        share = torch.zeros(tiles * patches)
        if self.merged is None:
            tile, patch = self._tile.cpu(), self._patch.cpu()
            share[(tile * patches + patch)[patch >= 0]] = 1.0
        else:
            share.index_add_(0, self.merged.source.cpu(), self._parts * self._left[self._output])
        share = share.clamp(max=1.0).reshape(tiles, patches)
        return share.masked_fill(~self.packing.valid, -1.0)

    @cached_property
    def read(self) -> Tensor:
        """Float `[T, N]`: the share of the language model's layers that read a patch, be it in a merged
        token; 0 for one that was dropped in front of it, 1 for one that no cut has dropped."""
        tiles, patches = self.num_tiles, self.patch_grid[0] * self.patch_grid[1]
        layers = torch.ones(self.tokens_entering)
        for cut in reversed(self.inside):
            gone = torch.ones(self.tokens_entering, dtype=torch.bool)
            gone[cut.left.cpu()] = False
            layers[gone] = cut.layer / self.depth
        read = torch.zeros(tiles * patches)
        if self.merged is None:
            tile, patch = self.tile.cpu(), self.patch.cpu()
            read[(tile * patches + patch)[patch >= 0]] = layers[patch >= 0]
        else:
            read.scatter_reduce_(0, self.merged.source.cpu(), layers[self._output], "amax")
        return read.reshape(tiles, patches)

    @cached_property
    def group(self) -> Tensor:
        """Int64 `[T, N]`: the token a merged patch has its largest part in, -1 for the others."""
        tiles, patches = self.num_tiles, self.patch_grid[0] * self.patch_grid[1]
        group = torch.full((tiles * patches,), -1)
        if self.merged is not None:
            output, source = self._output, self.merged.source.cpu()
            several = torch.bincount(output, minlength=self.merged.num_outputs)[output] > 1
            several &= self._left[output]
            # ascending, so that the entry with the largest part is written last
            for entry in torch.argsort(self._parts, stable=True).tolist():
                if several[entry]:
                    group[source[entry]] = output[entry]
        return group.reshape(tiles, patches)

    @property
    def _output(self) -> Tensor:
        """Int64 `[K]`: the token of each merge entry."""
        assert self.merged is not None
        return self.merged.output.cpu()

    @property
    def _left(self) -> Tensor:
        """Bool `[M]`: which of the tokens are left behind the last cut."""
        left = torch.ones(self.tokens_entering, dtype=torch.bool)
        if self.inside:
            left.zero_()[self.inside[-1].left] = True
        return left

    @cached_property
    def _parts(self) -> Tensor:
        """Float `[K]`: weight of each merge entry over the sum of its token's weights."""
        assert self.merged is not None
        output, weight = self.merged.output.cpu(), self.merged.weight.cpu().float().abs()
        total = torch.zeros(self.merged.num_outputs).index_add_(0, output, weight)
        return weight / total[output].clamp(min=torch.finfo(torch.float32).tiny)

    # -- plain values ------------------------------------------------------------------------

    def counts(self) -> dict[str, Any]:
        """The numbers a person or a script reads, as plain values."""
        shape = self.packing.to_dict()
        pairs = {name: shape[name] for name in ("patch_grid", "tile_grid", "image_size")}
        return {name: getattr(self, name) for name in COUNTS} | pairs

    def to_dict(self) -> dict[str, Any]:
        """`counts`, and everything that `from_dict` needs."""
        merged = self.merged and {
            name: getattr(self.merged, name).tolist() for name in ("output", "source", "weight")
        }
        return {
            **self.counts(),
            **self.packing.to_dict(),
            "fit": self.fit,
            "kept": [list(entry) for entry in self.kept],
            "tile": self.tile.tolist(),
            "patch": self.patch.tolist(),
            "weight": self.weight.tolist(),
            "merged": merged,
            "full": self.full and self.full.to_dict(),
            "depth": self.depth,
            "inside": [[cut.layer, cut.left.tolist()] for cut in self.inside],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ImageReport:
        """The inverse of `to_dict`; derived counts are worked out again."""
        report = cls(
            packing=Packing.from_dict(data),
            tile=torch.tensor(data["tile"], dtype=torch.long),
            patch=torch.tensor(data["patch"], dtype=torch.long),
            weight=torch.tensor(data["weight"], dtype=torch.float),
            **{key: data[key] for key in ("fit", "seconds", "sample")},
            asked=data.get("asked"),  # reports were saved before they said so
            full=Packing.from_dict(data["full"]) if data.get("full") else None,
            depth=data.get("depth", 0),
            inside=tuple(
                LayerCut(layer, torch.tensor(left, dtype=torch.long))
                for layer, left in data.get("inside", ())
            ),
        )
        if data["merged"] is not None:
            report.merged = MergeIndex(
                output=torch.tensor(data["merged"]["output"], dtype=torch.long),
                source=torch.tensor(data["merged"]["source"], dtype=torch.long),
                weight=torch.tensor(data["merged"]["weight"], dtype=torch.float),
                num_outputs=len(data["tile"]),
                num_sources=report.packing.valid.numel(),
            )
        return report


def _note(asked: int | None, before: int, left: int) -> str:
    if asked is None or asked == left:
        return ""
    if asked > before == left:
        return f"asked for {asked} patch tokens, there are {before}, and all stay"
    return f"asked for {asked} patch tokens, {left} of {before} are left"


@dataclass(eq=False)
class Report:
    """One prefill: its images and the settings that held for them.

    Attributes:
        images: one entry per image of the call, in the order of the prompt.
        method: name of the method.
        settings: its hyper-parameters as plain values.
        seconds: time spent in selection, all images together.
        positions: how position ids were given, `"original"`, `"contiguous"` or `"regrid"`.
        notes: what a reader should know, e.g. that a stand-in for a missing signal was used, or
            which images were not left with the number of tokens that was asked for.
    """

    images: list[ImageReport] = field(default_factory=list)
    method: str = "none"
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    positions: str = "original"
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.notes = list(dict.fromkeys([*self.notes, *self._budget_notes()]))

    def _budget_notes(self) -> list[str]:
        """The notes of images, alike ones together, as far as nothing has to be read for them."""
        found: dict[str, list[int]] = {}
        for number, image in enumerate(self.images):
            note = "" if image._known is None else _note(image.asked, *image._known)
            if note:
                found.setdefault(note, []).append(number)
        if len(found) > MOST_NOTES:
            count = sum(map(len, found.values()))
            return [f"{count} images have another number of patch tokens than was asked for"]
        return [
            f"image{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}: {note}"
            for note, numbers in found.items()
        ]

    @property
    def stages(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and settings of every method, in the order in which tokens passed them.

        Of one method these are `method` and `settings`; of several `method` is `"a+b"`, and `settings`
        has those of each by its name.
        """
        names = self.method.split("+")
        if len(names) == 1:
            return [(self.method, self.settings)]
        return [(name, self.settings[name]) for name in names]

    @property
    def cut_inside(self) -> bool:
        """Whether tokens were dropped inside the language model."""
        return any(image.inside for image in self.images)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[ImageReport]:
        return iter(self.images)

    def total(self, name: str) -> int:
        """Sum of a count such as `"patches_after"` over all images."""
        return sum(getattr(image, name) for image in self.images)

    def summary(self) -> str:
        """One line: method, counts, time."""
        before, after = self.total("patches_before"), self.total("patches_after")
        share = f" ({after / before:.1%})" if before else ""
        separators = self.total("separators_after")
        also = f" + {separators} newline tokens" if separators else ""
        count = f"{len(self.images)} image{'' if len(self.images) == 1 else 's'}"
        inside = sum(i.average_retention * i.patches_before for i in self.images) / max(before, 1)
        average = f", {inside:.1%} on average over the layers" if self.cut_inside else ""
        return (
            f"{self.method}: {after} of {before} patch tokens{share}{also}{average}, {count}, "
            f"selection {1e3 * self.seconds:.1f} ms"
        )

    __str__ = summary

    def table(self) -> Table:
        """A `rich` table with a line per image."""
        from rich.table import Table

        table = Table(title=self.summary(), caption="\n".join(self.notes) or None)
        for name in (
            "image",
            "width x height",
            "rows x columns of crops",
            "patch tokens",
            "newline tokens",
            "kept",
            "per tile",
        ):
            table.add_column(name, justify="left" if name == "per tile" else "right")
        for index, image in enumerate(self.images):
            size, grid = image.image_size, image.tile_grid
            table.add_row(
                str(index),
                "-" if size is None else f"{size[1]} x {size[0]}",
                "-" if grid is None else f"{grid[0]} x {grid[1]}",
                f"{image.patches_after} / {image.patches_before}",
                f"{image.separators_after} / {image.separators_before}",
                f"{image.retention:.1%}",
                " ".join(f"{share:.0%}" for share in image.per_tile_retention),
            )
        return table

    def to_dict(self, details: bool = True) -> dict[str, Any]:
        """Plain values that `json` can write.

        Args:
            details: with every token; otherwise only the counts, which cannot be read back.
        """
        return {
            "format": FORMAT if details else None,
            "method": self.method,
            "settings": dict(self.settings),
            "positions": self.positions,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "images": [i.to_dict() if details else i.counts() for i in self.images],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """The inverse of `to_dict`.

        Raises:
            VTCError: `data` is not a report.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise VTCError(f"report: no report in this data, expected format {FORMAT!r}")
        try:
            images = [ImageReport.from_dict(image) for image in data["images"]]
            rest = {k: data[k] for k in ("method", "settings", "seconds", "positions", "notes")}
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise VTCError(f"report: the data is damaged: {error!r}") from error
        return cls(images=images, **rest)

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report to a file."""
        Path(path).write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")

    @classmethod
    def load_json(cls, path: str | os.PathLike[str]) -> Report:
        """Read what `save_json` wrote.

        Raises:
            VTCError: the file cannot be read or is not a report.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise VTCError(f"report: cannot read {str(path)!r}: {error}") from error
        return cls.from_dict(data)
