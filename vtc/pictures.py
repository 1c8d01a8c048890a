"""Pictures of what a method kept, merged and dropped, painted over the original image.

Kept patches stay clear, dropped ones are washed out, merged ones are tinted (the fainter the less
they count in their token), and those that are dropped inside the language model are blue (the fainter
the sooner they go). Anyres images get two panels, one for the thumbnail and one for the
crops: the same picture twice, because both cover all of it. Needs numpy and Pillow only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vtc.errors import VTCError
from vtc.panels import WIDTH, Array, cells_of, excerpt, paint_panel
from vtc.report import ImageReport, Report
from vtc.rgb import levels, load_image
from vtc.sheet import SWATCH, Heading, sheet

ASPECT_TOLERANCE = 0.02
FEW_FRAMES, MANY_FRAMES = 0.5, 0.35  # width of a frame of a clip, of that of a picture


Picture = Image.Image | str | os.PathLike[str] | Array


class HasReports(Protocol):
    """What `vtc.compress` and `vtc.apply` return."""

    @property
    def reports(self) -> list[Report]: ...


def visualize(
    image: Picture | Sequence[Picture],
    report: Report | ImageReport | Sequence[Report] | HasReports,
    index: int = 0,
    width: int = WIDTH,
    *,
    file: str = "",
    model: str = "",
    question: str = "",
) -> Image.Image:
    """Paint a report over its picture.

    Args:
        image: the picture the report is about, in any resolution: a PIL image, a file, or an array
            `[H, W]`, `[H, W, 3]` or `[H, W, 4]` (bool, whole numbers of 8 or 16 bits, floats in
            0..1 or 0..255). For a clip a list of its frames, or an array `[F, H, W, 3]`.
        report: what `vtc.compress` or `vtc.apply` returned, its `reports` (the last one is painted),
            one of them, or one image of one.
        index: which image of a report.
        width: widest panel in pixels; smaller pictures are enlarged to it.
        file, model, question: for the heading; by default what `image` and `report` say of themselves.

    Returns:
        An RGB picture with a heading, one or two panels (for a clip one a frame) and a legend. A panel
        of a very tall or very wide picture is stretched, which its label says.

    Raises:
        VTCError: the file is no image, there is no such report or index, or the picture has another
            shape than the one in the report.
    """
    if not isinstance(width, int) or width < 1:
        raise VTCError(f"width: got {width!r}, allowed are whole numbers >= 1")
    title, model = "kept tokens", model or _model_of(report)
    whole = _one_report(report)
    if isinstance(whole, Report):
        title = _title(whole)
        if not isinstance(index, int) or not -len(whole.images) <= index < len(whole.images):
            raise VTCError(f"index: got {index!r}, the report has {len(whole.images)} image(s)")
        shown = whole.images[index]
    else:
        shown = whole
    pictures = _frames(image, shown)
    for picture in pictures:
        _check_shape(picture, shown)
    names = ["thumbnail"] if shown.tile_grid is None else ["thumbnail", "crops"]
    if len(pictures) > 1:
        width = max(1, round(width * (FEW_FRAMES if len(pictures) <= 4 else MANY_FRAMES)))
    panels, labels, kinds = [], [], set()
    for frame, picture in enumerate(pictures):
        for name in names:
            panels.append(paint_panel(picture, shown, name, width, frame=frame))
            labels.append(_label(shown, name, frame, picture, panels[-1]))
            cells = cells_of(shown, name, panels[-1].size, picture.size, frame)
            kinds |= set(np.unique(cells.kind).tolist())
    asked = f"asked: {question}" if question else ""
    facts = [fact for fact in (file or _file_of(image), model, asked) if fact]
    sample = excerpt(pictures[0], SWATCH)
    heading = Heading(title, _counts(shown), " · ".join(facts))
    return sheet(heading, panels, labels, _legend(shown, kinds), sample)


def _one_report(report: Any) -> Report | ImageReport:
    """The report to paint, of whatever holds one."""
    found = report if isinstance(report, (list, tuple)) else getattr(report, "reports", report)
    if isinstance(found, (list, tuple)):
        if not found:
            raise VTCError("report: there is none yet, since no image went through the model")
        found = found[-1]
    if not isinstance(found, (Report, ImageReport)):
        raise VTCError(
            f"report: got {type(report).__name__}, allowed are what vtc.compress returned, its reports, "
            "one of them, or one of its images"
        )
    return found


def _model_of(report: Any) -> str:
    """The name of the model under a handle."""
    config = getattr(getattr(report, "model", None), "config", None)
    name = str(getattr(config, "_name_or_path", "") or "")
    return "/".join(Path(name).parts[-2:]) if Path(name).is_dir() else name


def _file_of(image: Any) -> str:
    """The name of a file, where there is one."""
    path = image if isinstance(image, (str, os.PathLike)) else getattr(image, "filename", "")
    return Path(path).name if path else ""


def _frames(image: Picture | Sequence[Picture], report: ImageReport) -> list[Image.Image]:
    """The picture, or the frames of a clip."""
    if isinstance(image, (list, tuple)) and all(isinstance(frame, np.ndarray) for frame in image):
        if len({(frame.shape, frame.dtype) for frame in image}) == 1:
            image = np.stack(image)
    if isinstance(image, np.ndarray) and image.ndim == 4 and image.size:
        image = list(levels(image))  # together: a dark frame alone would be taken for 8 bits
    if isinstance(image, (list, tuple)):
        pictures = [load_image(frame) for frame in image]
    else:
        pictures = [load_image(image)]  # type: ignore[arg-type]
    if len(pictures) != report.frames:
        expected = f"a clip of {report.frames} frames" if report.frames > 1 else "one image"
        raise VTCError(f"image: got {len(pictures)} picture(s), the report is about {expected}")
    return pictures


def _check_shape(picture: Image.Image, report: ImageReport) -> None:
    if report.image_size is None:
        return
    height, width = report.image_size
    ratio = picture.width / picture.height / (width / height)
    # a resized copy is off by up to one pixel of its short side
    slack = ASPECT_TOLERANCE + 1 / min(picture.size)
    if not 1 / (1 + slack) <= ratio <= 1 + slack:
        raise VTCError(
            f"image: got {picture.width} x {picture.height}, but the report is about an image of "
            f"{width} x {height} pixels; is `index` right?"
        )


# -- texts -------------------------------------------------------------------------------------


def _title(report: Report) -> str:
    settings = {
        key: value
        for key, value in report.settings.items()
        if value is not None and isinstance(value, (bool, int, float, str))
    }
    budget = [f"{k} {settings[k]:g}" for k in ("retention", "tokens") if k in settings]
    return " · ".join([report.method, *budget])


def _counts(report: ImageReport) -> str:
    text = (
        f"{report.patches_after} of {report.patches_before} patch tokens left "
        f"({report.retention:.1%})"
    )
    before, after = report.separators_before, report.separators_after
    if before:
        newlines = f"newline token{'s' * (before > 1)} of the model"
        stay = f"and all {before}" if after == before else f"and {after} of the {before}"
        text += f", {stay} {newlines}"
    if report.inside:
        behind = [f"{tokens} from layer {layer} on" for layer, tokens in report.cuts]
        text += (
            f" · the language model reads {report.tokens_entering} tokens of it, {', '.join(behind)}: "
            f"{report.average_retention:.1%} of the patch tokens in a layer on average"
        )
    return text


def _label(
    report: ImageReport, name: str, frame: int, picture: Image.Image, panel: Image.Image
) -> str:
    tiles = report.per_tile[1:] if name == "crops" else report.per_tile[frame : frame + 1]
    after, before = sum(tile[0] for tile in tiles), sum(tile[1] for tile in tiles)
    what = name
    if report.frames > 1:
        what = f"frame {frame + 1}"
    elif report.tile_grid is None:
        what = "single tile"
    elif name == "crops":
        what = f"{report.tile_grid[0]} x {report.tile_grid[1]} crops"
    text = f"{what} · {after} of {before} · {after / max(before, 1):.0%}"
    stretched = panel.width / panel.height / (picture.width / picture.height)
    if max(stretched, 1 / stretched) > 1.5 and min(picture.size) > 1:
        way = "wide" if stretched > 1 else "tall"
        text += f" · drawn {max(stretched, 1 / stretched):.1f}x as {way}"
    return text


def _legend(report: ImageReport, kinds: set[int]) -> list[tuple[str | float, str]]:
    """`(swatch, text)` of what the panels show."""
    texts: dict[int, tuple[str | float, str]] = {
        3: ("kept", "kept"),
        2: ("merged", "merged: fainter the less a patch counts in its token"),
        1: ("dropped", "dropped"),
        0: ("outside", "no token looks here"),
    }
    entries = [entry for kind, entry in texts.items() if kind in kinds]
    if 4 in kinds:
        entries += [
            (cut.layer / report.depth, f"dropped in front of layer {cut.layer} of {report.depth}")
            for cut in report.inside
        ]
    if report.tile_grid is not None:
        entries.append(("border", "edge between crops; the number is what a crop keeps"))
    return entries
