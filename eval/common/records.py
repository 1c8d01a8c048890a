"""A run on disk: a manifest that says what made it, and lines that are written as they come."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vtc.errors import VTCError

#: name of the manifest in a run's folder
MANIFEST = "run.json"


@dataclass(frozen=True)
class Answer:
    """One answered question under one setting: a line of `answers*.jsonl`.

    Attributes:
        setting: `Setting.key`.
        item, kind, answers: of the `Item`.
        cluster: of the `Item`, or a hash of its images' pixels where it has none.
        prediction: what the model said, None when the row failed.
        score: from 0 to 1; None when the row failed.
        error: why the row failed, None when it did not.
        tokens, tokens_full: visual tokens of the row after and before compression, as the language
            model gets them: patch tokens and separators.
        patches, patches_full: the patch tokens among them, which `retention` is about; None for the
            uncompressed model.
        extra: what the suite's `summary` needs besides.
    """

    setting: str
    item: str
    cluster: str
    kind: str
    answers: tuple[str, ...]
    prediction: str | None
    score: float | None
    error: str | None = None
    tokens: int | None = None
    tokens_full: int | None = None
    patches: int | None = None
    patches_full: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Answer:
        return cls(**{**line, "answers": tuple(line["answers"])})


class Lines:
    """A JSONL file that grows: every line is on disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        # without a buffer: nothing is left over that a full disk would make `close` fail on
        self._file = path.open("ab", buffering=0)
        if torn:  # the last run was killed while it wrote; the torn line is skipped by `read_lines`
            self._file.write(b"\n")

    def write(self, *lines: str) -> None:
        """Add lines.

        Raises:
            OSError: the disk is full or gone; the lines before are safe.
        """
        data = "".join(line + "\n" for line in lines).encode()
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path, read: Callable[[dict[str, Any]], Any] = dict) -> Iterator[Any]:
    """The lines of a JSONL file, which may be packed (`.gz`), each through `read`; a line that a
    killed run left half written is skipped.

    Raises:
        VTCError: `read` cannot make something of a line, or a packed file is cut short or damaged;
            the message has file and line.
    """
    open_text = gzip.open if path.suffix == ".gz" else open
    number = 0
    with open_text(path, "rt", encoding="utf-8", errors="replace") as file:
        try:
            for text in file:
                number += 1
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:
                    continue
                yield read(line)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise VTCError(
                f"{str(path)!r}, line {number}: not what is kept there, {reason}"
            ) from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise VTCError(f"{str(path)!r}, behind line {number}: {error}") from None


def read_manifest(folder: Path) -> dict[str, Any]:
    """`run.json` of a run.

    Raises:
        VTCError: when the folder holds no run.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise VTCError(f"run={str(folder)!r}: no readable {MANIFEST} there ({error})") from None
    if not isinstance(manifest, dict):
        raise VTCError(f"run={str(folder)!r}: {MANIFEST} is not an object")
    return manifest


def answer_files(folder: Path) -> list[Path]:
    """The files of an accuracy run's answers, of every process that wrote there."""
    return sorted([*folder.glob("answers*.jsonl"), *folder.glob("answers*.jsonl.gz")])


def read_answers(folder: Path) -> list[Answer]:
    """All answers of an accuracy run.

    A row that failed may have been asked again: an answer counts more than a failure, and of two
    failures the last.

    Raises:
        VTCError: see `read_lines`.
    """
    found: dict[tuple[str, str], Answer] = {}
    for path in answer_files(folder):
        for answer in read_lines(path, Answer.read):
            kept = found.get((answer.setting, answer.item))
            if kept is None or kept.error is not None or answer.error is None:
                found[answer.setting, answer.item] = answer
    return list(found.values())


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `run.json` whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
