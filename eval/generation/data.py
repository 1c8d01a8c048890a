"""Images by name: digits, rendered shapes and glyphs, folders, hub data sets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, Subset

from vtc.errors import VTCError, nearest
from vtc.eval.generation import render
from vtc.eval.generation.config import DataSettings
from vtc.rgb import upright

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageData:
    """Images to learn from and images to measure with.

    An item is `{"image": [3, size, size] in [-1, 1], "label": int}`.

    Attributes:
        name: as given.
        train: images to learn from.
        valid: images held out.
        classes: names of the labels.
        size: pixels of a side.
        words: vocabulary of the captions `[T]` under "caption"; empty where there are none.
    """

    name: str
    train: Dataset
    valid: Dataset
    classes: tuple[str, ...]
    size: int
    words: tuple[str, ...] = ()

    def read(self, caption: str) -> Tensor:
        """The words of a caption, int64 `[T]`.

        Raises:
            VTCError: no word, or one outside the vocabulary.
        """
        numbers = {word: index for index, word in enumerate(self.words)}
        found = caption.split()
        for word in found or [""]:
            if word not in numbers:
                raise VTCError(
                    f"captions: got {caption!r}, {word!r} is none of {', '.join(self.words)}"
                )
        return torch.tensor([numbers[word] for word in found])


class TensorImages(Dataset):
    """Images in memory.

    Args:
        images: `[n, 3, H, W]` in [-1, 1].
        labels: int64 `[n]`.
        extra: further tensors `[n, ...]` by name, handed out with each item.
    """

    def __init__(self, images: Tensor, labels: Tensor, **extra: Tensor) -> None:
        self.tensors = {"image": images, "label": labels, **extra}

    def __len__(self) -> int:
        return len(self.tensors["image"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index] for name, value in self.tensors.items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A whole batch at once (torch's loader asks for it)."""
        return {name: value[indices] for name, value in self.tensors.items()}


class FolderImages(Dataset):
    """Image files, one folder a class; each is squared by a centre crop.

    Args:
        root: the folder.
        size: pixels of a side.
        corrupt: "error" raises when a file that is no image is read; "skip" reads every file at the
            start and leaves those out, with a warning that names them.
    """

    def __init__(self, root: Path, size: int, corrupt: str = "error") -> None:
        if not root.is_dir():
            raise VTCError(f"data.name: {root} is no folder")
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
        self.classes = tuple(sorted({str(p.parent.relative_to(root)) for p in files}))
        self.size = size
        if corrupt == "skip":
            files = self._readable(files)
        self.files = files
        if not self.files:
            raise VTCError(f"data.name: {root} has no readable image ({', '.join(SUFFIXES)})")
        number = {name: index for index, name in enumerate(self.classes)}
        self.labels = [number[str(p.parent.relative_to(root))] for p in self.files]

    def _readable(self, files: list[Path]) -> list[Path]:
        good, bad = [], []
        for path in files:
            try:
                self._read(path)
                good.append(path)
            except VTCError:
                bad.append(str(path))
        if bad:
            warnings.warn(
                f"{len(bad)} of {len(files)} files are no images: {', '.join(bad)}", stacklevel=4
            )
        return good

    def _read(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as picture:
                return picture_to_tensor(picture, self.size)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise VTCError(
                f"data: {path} cannot be read as an image ({error}); data.corrupt=skip leaves it out"
            ) from error

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._read(self.files[index]), "label": self.labels[index]}


class HubImages(Dataset):
    """A data set of the `datasets` library.

    The image column is the first of that kind, the label column the first of class labels; without
    one every label is 0.

    Args:
        table: a `datasets.Dataset`.
        size: pixels of a side.
    """

    def __init__(self, table: Any, size: int) -> None:
        import datasets

        kinds = {name: type(kind) for name, kind in table.features.items()}
        images = [name for name, kind in kinds.items() if kind is datasets.Image]
        labels = [name for name, kind in kinds.items() if kind is datasets.ClassLabel]
        if not images:
            raise VTCError(f"data.name: no image column among {', '.join(kinds)}")
        self.table, self.size, self.image = table, size, images[0]
        self.label = labels[0] if labels else None
        self.classes = tuple(table.features[self.label].names) if self.label else ("image",)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.table[int(index)]
        label = row[self.label] if self.label else 0
        return {"image": picture_to_tensor(row[self.image], self.size), "label": label}


def picture_to_tensor(picture: Image.Image, size: int) -> Tensor:
    """A PIL picture, squared by a centre crop, as `[3, size, size]` in [-1, 1].

    It is turned as its EXIF note says, more than 8 bits are scaled, and what is transparent becomes
    white.
    """
    import numpy as np

    if picture.has_transparency_data and not picture.mode.startswith("I"):
        picture = ImageOps.exif_transpose(picture)
        picture = Image.alpha_composite(
            Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")
        )
    picture = upright(picture)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    picture = picture.resize((size, size), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def digits(size: int) -> tuple[TensorImages, tuple[str, ...]]:
    """scikit-learn's 1797 digits of 8 x 8 pixels, enlarged where `size` is a multiple of 8."""
    from sklearn.datasets import load_digits

    if size % 8:
        raise VTCError(f"data.size: got {size}, digits have 8 pixels, allowed are multiples")
    table = load_digits()
    images = torch.tensor(table.images).float()[:, None].expand(-1, 3, -1, -1) / 8 - 1
    images = torch.nn.functional.interpolate(images, scale_factor=size // 8)
    return TensorImages(images, torch.tensor(table.target)), tuple("0123456789")


def load_data(settings: DataSettings) -> ImageData:
    """The images that `settings` name.

    Raises:
        VTCError: an unknown name, a folder without images, a library that is missing.
    """
    kind, _, rest = settings.name.partition(":")
    whole: Any
    if kind == "digits":
        whole, classes = digits(settings.size)
    elif kind in ("shapes", "glyphs"):
        draw = render.shapes if kind == "shapes" else render.glyphs
        images, labels, classes, extra = draw(settings.count or 2000, settings.size, settings.seed)
        whole = TensorImages(images, labels, **extra)
    elif kind == "folder":
        whole = FolderImages(Path(rest), settings.size, settings.corrupt)
        classes = whole.classes
    elif kind == "hub":
        whole = HubImages(_table(rest, settings.split), settings.size)
        classes = whole.classes
    else:
        known = ("digits", "shapes", "glyphs", "folder:PATH", "hub:NAME")
        raise VTCError(
            f"data.name: got {settings.name!r}, available are {', '.join(known)}"
            f"{nearest(kind, ('digits', 'shapes', 'glyphs', 'folder', 'hub'))}"
        )
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(settings.seed))
    order = order[: settings.count or None]
    held = max(1, round(len(order) * settings.held_out)) if settings.held_out else 0
    cut = len(order) - held
    if cut < 1:
        raise VTCError(f"data: {len(order)} images are too few to hold some out")
    parts = [_subset(whole, part) for part in (order[:cut].tolist(), order[cut:].tolist())]
    words = render.WORDS if kind == "shapes" else ()
    return ImageData(settings.name, parts[0], parts[1], classes, settings.size, words)


def take(dataset: Dataset, indices: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Items of a data set as one batch; all of them by default."""
    chosen = list(range(len(dataset))) if indices is None else list(indices)  # type: ignore[arg-type]
    if hasattr(dataset, "__getitems__") and isinstance(dataset, TensorImages):
        return dataset.__getitems__(chosen)
    return torch.utils.data.default_collate([dataset[index] for index in chosen])


def _subset(whole: Any, indices: list[int]) -> Dataset:
    if isinstance(whole, TensorImages):
        parts = whole.__getitems__(indices)
        return TensorImages(parts.pop("image"), parts.pop("label"), **parts)
    return Subset(whole, indices)


def _table(name: str, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise VTCError(
            "data.name: a hub data set needs `datasets`, install it with `pip install datasets`"
        ) from error
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds: no network, no such name, ...
        raise VTCError(f"data.name: {name!r} cannot be loaded: {error}") from error
