"""Benchmarks that are tables with an image column: read from the hub, a folder or a Parquet file."""

from __future__ import annotations

import functools
import io
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vtc.errors import VTCError
from vtc.eval.suites.base import Item, Suite, digest

if TYPE_CHECKING:
    from PIL.Image import Image

WORD_OR_PHRASE = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."

#: a row of `columns`, with a call that opens the image under "image"
Row = Mapping[str, Any]


@dataclass
class TableSuite(Suite):
    """A benchmark whose questions are the rows of a table.

    Attributes:
        data: a Parquet file, a folder with Parquet files (as on the hub, or all of them together),
            or another hub dataset of the same form; by default `dataset` on the hub.
        split: by default `default_split`.
        dataset, config: where the table is on the hub.
        columns: what `read` uses, besides the image.
    """

    data: str = ""
    split: str = ""
    _items: list[Item] = field(default_factory=list, init=False, repr=False)

    dataset: ClassVar[str]
    config: ClassVar[str | None] = None
    default_split: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]

    @abstractmethod
    def read(self, row: Row, number: int) -> Item:
        """The question in a row. Equal ids of several rows are told apart by the caller."""

    def items(self) -> Sequence[Item]:
        if not self._items:
            self._items = list(self._read())
        return self._items

    def _read(self) -> Iterator[Item]:
        seen: Counter[str] = Counter()
        for number, row in enumerate(self.rows()):
            item = self._item(row, number)
            seen[item.id] += 1
            name = item.id if seen[item.id] == 1 else f"{item.id}#{seen[item.id]}"
            yield replace(item, id=name)

    def _item(self, row: Row, number: int) -> Item:
        """`read`, with answers as text; a row that it cannot read is an item with the reason."""
        try:
            item = self.read(row, number)
            if row["question"] is None:
                raise VTCError("there is no question")
        except Exception as error:  # whatever odd values make of `read`
            name = "" if isinstance(error, VTCError) else f"{type(error).__name__}: "
            return Item(f"row-{number}", (), "", (), error=f"row {number}: {name}{error}")
        answers = tuple(str(answer) for answer in item.answers if answer is not None)
        return replace(item, answers=answers, kind=str(item.kind or ""))

    def rows(self) -> Iterator[Row]:
        """The rows of the table, in its order."""
        return self.table(self.config, self.columns)

    def table(
        self, config: str | None, columns: Sequence[str], image: str = "image"
    ) -> Iterator[Row]:
        """The rows of one table of the dataset.

        Args:
            image: the column of the image, "" for a table without.

        Raises:
            VTCError: no such data, or a column is missing.
        """
        split = self.split or self.default_split
        table, folder = _load(self.data or self.dataset, config, split)
        wanted = [*columns, *([image] if image else [])]
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            raise VTCError(
                f"data: {self.data or self.dataset!r} (split {split!r}) lacks the column(s) "
                f"{', '.join(missing)} of {self.name!r}; it has {', '.join(table.column_names)}"
            )
        texts = table.select_columns(list(columns))
        if not image:
            yield from texts
            return
        images = _undecoded(table.select_columns([image]), image)
        for number, row in enumerate(texts):
            yield {**row, image: functools.partial(open_image, images, number, image, folder)}

    def facts(self) -> dict[str, Any]:
        """Dataset and split, and a SHA-256 over ids, prompts and answers (images are not read)."""
        fingerprint = digest((item.id, item.prompt, item.answers) for item in self.items())
        return {
            "dataset": self.dataset,
            "config": self.config,
            "split": self.split or self.default_split,
            "count": len(self._items),
            "fingerprint": fingerprint,
        }


def open_image(table: Sequence[Row], number: int, column: str, folder: Path) -> Image:
    """The image of a row as RGB, turned upright as its EXIF tag says: from a `datasets` record
    (`bytes` or `path`), bytes, a path, or an image.

    Args:
        folder: what paths are relative to.

    Raises:
        VTCError: the row has none.
    """
    from PIL import Image

    from vtc.rgb import upright

    value = table[number][column]
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not value:
        raise VTCError(f"row {number} has no {column}")
    if isinstance(value, bytes):
        value = Image.open(io.BytesIO(value))
    elif isinstance(value, str):
        value = Image.open(folder / value)
    return upright(value)


def lettered(options: Sequence[str]) -> dict[str, str]:
    """Options under the letters A, B, ..."""
    return {chr(ord("A") + i): str(option) for i, option in enumerate(options)}


def right_letter(options: Mapping[str, str], answer: Any) -> tuple[str, ...]:
    """The letter of option number `answer`, counted from 0; empty for None.

    Raises:
        ValueError, VTCError: no number, or out of range.
    """
    if answer is None:
        return ()
    if not 0 <= int(answer) < len(options):
        raise VTCError(f"answer: got {answer!r}, the options are 0 to {len(options) - 1}")
    return (list(options)[int(answer)],)


def listed(options: Mapping[str, str]) -> str:
    """`A. ...` to the last option, one a line."""
    return "\n".join(f"{letter}. {option}" for letter, option in options.items())


# -- data --------------------------------------------------------------------------------------


def _load(source: str, config: str | None, split: str) -> tuple[Any, Path]:
    """The table, and the folder that paths in it are relative to."""
    try:
        import datasets
    except ImportError as error:
        raise VTCError(
            "suite: reading datasets needs the `datasets` package: pip install vtc-vlm[suites]"
        ) from error
    path = Path(source).expanduser()
    call: Callable[[], Any]
    if path.exists():
        files = [str(file) for file in _files(path, config, split)]
        call = functools.partial(datasets.load_dataset, "parquet", data_files=files, split="train")
    elif source.count("/") == 1 and not source.startswith((".", "/", "~")):
        call = functools.partial(datasets.load_dataset, source, config, split=split)
    else:
        raise VTCError(f"data: got {source!r}, which is no file, folder or hub dataset")
    try:
        return call(), path if path.is_dir() else path.parent
    except Exception as error:  # of the hub, of Arrow, of the disk: they have no common base
        reason = " ".join(str(error).split())[:300]
        raise VTCError(f"data: cannot read {source!r} (split {split!r}): {reason}") from error


def _files(path: Path, config: str | None, split: str) -> list[Path]:
    """The Parquet files of a split.

    In a folder those called SPLIT.parquet or SPLIT-*.parquet, of the sub-folder with the
    configuration's name if there is one; a single file needs no name.
    """
    if path.is_file():
        return [path]
    root = path / config if config and (path / config).is_dir() else path
    there = sorted(root.rglob("*.parquet"))
    named = [file for file in there if file.stem == split or file.stem.startswith(f"{split}-")]
    found = named or (there if len(there) == 1 else [])
    if not found:
        names = ", ".join(file.relative_to(path).as_posix() for file in there) or "no Parquet file"
        raise VTCError(f"data: {str(path)!r} has no {split}-*.parquet; there is {names}")
    return found


def _undecoded(table: Any, column: str) -> Any:
    """The table with image records instead of images: nothing is opened when a row is read."""
    import datasets

    if isinstance(table.features[column], datasets.Image):
        return table.cast_column(column, datasets.Image(decode=False))
    return table
