"""Which images a scorer learns from, and what is asked about each."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.errors import VTCError

if TYPE_CHECKING:
    from PIL.Image import Image

#: asked where nobody says what; what a picture is usually asked about
GENERAL = (
    "Describe this image in detail.",
    "What text can be read in this image?",
    "Which objects are in this image, and where are they?",
)
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Picture:
    """An image and what is asked about it.

    Attributes:
        name: the file's, relative to the folder, or the number of a scene.
        open: gives the image, RGB.
        questions: the texts.
        types: what kind of question each is; kinds count alike, whatever their number.
        content: gives bytes that no other image has.
    """

    name: str
    open: Callable[[], Image]
    questions: tuple[str, ...]
    types: tuple[str, ...]
    content: Callable[[], bytes]


def from_folder(folder: Path, questions: Path | None, most: int) -> list[Picture]:
    """The images of a folder and those below it, by name.

    Args:
        questions: JSONL, a line `{"image": NAME, "question": TEXT}`, and `"type"` if you like; images
            that no line names are left out. None asks `GENERAL` about each.
        most: questions an image; of more those are taken that leave types even.

    Raises:
        VTCError: there are no images, or the file names one that is not there.
    """
    from vtc.rgb import load_image

    if not folder.is_dir():
        raise VTCError(f"--images: got {str(folder)!r}, allowed is a folder with images")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS)
    known = {p.relative_to(folder).as_posix(): p for p in files}
    if questions is None:
        asked = {name: [(text, text) for text in GENERAL] for name in known}
    else:
        asked = _read(questions, known)
    if not asked:
        raise VTCError(f"--images: got {str(folder)!r}, which has no images ({', '.join(ENDINGS)})")
    return [
        _picture(
            name,
            functools.partial(load_image, known[name]),
            known[name].read_bytes,
            asked[name],
            most,
        )
        for name in sorted(asked)
    ]


def scenes(count: int, seed: int, most: int) -> list[Picture]:
    """Drawn training scenes of the reference model with their own questions; their answers are not
    looked at."""
    from vtc.eval.reference.scene import GRID_WEIGHTS, KINDS, make_scene

    out: list[Picture] = []
    number = 0
    while len(out) < count:
        scene = make_scene("train", 1000 + seed, number, KINDS, GRID_WEIGHTS)
        if scene.questions:
            asked = [(q.text, q.type) for q in scene.questions]
            image = scene.image
            out.append(_picture(f"scene {number}", image.copy, image.tobytes, asked, most))
        number += 1
    return out


def _picture(
    name: str,
    image: Callable[[], Image],
    content: Callable[[], bytes],
    asked: list[tuple[str, str]],
    most: int,
) -> Picture:
    """The first questions of every type in turns, up to `most`."""
    by_type: dict[str, list[str]] = {}
    for text, kind in asked:
        by_type.setdefault(kind, []).append(text)
    turns = max(map(len, by_type.values()))
    mixed = [
        (texts[turn], kind)
        for turn in range(turns)
        for kind, texts in by_type.items()
        if turn < len(texts)
    ][:most]
    return Picture(name, image, tuple(t for t, _ in mixed), tuple(k for _, k in mixed), content)


def _read(path: Path, known: dict[str, Path]) -> dict[str, list[tuple[str, str]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VTCError(f"--questions: cannot read {str(path)!r}: {error}") from error
    asked: dict[str, list[tuple[str, str]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            image, text, kind = row["image"], row["question"], row.get("type", "")
        except (ValueError, TypeError, KeyError, AttributeError):
            raise VTCError(
                f'--questions: line {number} of {str(path)!r} is not {{"image": NAME, "question": TEXT}}'
            ) from None
        if image not in known:
            raise VTCError(f"--questions: line {number} names {image!r}, which --images has not")
        asked.setdefault(image, []).append((str(text), str(kind)))
    if not asked:
        raise VTCError(f"--questions: got {str(path)!r}, which has no questions")
    return asked
