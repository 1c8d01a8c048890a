"""Pictures of what a method kept, merged and dropped, painted over the original image.

Kept patches stay clear, dropped ones are washed out, merged ones are tinted (the fainter the less
they count in their token). Anyres images get two panels, one for the thumbnail and one for the
crops: the same picture twice, because both cover all of it. Needs numpy and Pillow only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vtc.errors import VTCError
from vtc.panels import INK, WIDTH, Array, cells_of, font, paint_panel, swatch
from vtc.report import ImageReport, Report
from vtc.rgb import levels, load_image

PAGE, FAINT = (250, 250, 252), (104, 110, 126)
GAP = 20  # px between panels and around the page
ASPECT_TOLERANCE = 0.02


Picture = Image.Image | str | os.PathLike[str] | Array


def visualize(
    image: Picture | Sequence[Picture],
    report: Report | ImageReport,
    index: int = 0,
    width: int = WIDTH,
) -> Image.Image:
    """Paint a report over its picture.

    Args:
        image: the picture the report is about, in any resolution: a PIL image, a file, or an array
            `[H, W]`, `[H, W, 3]` or `[H, W, 4]` (bool, whole numbers of 8 or 16 bits, floats in
            0..1 or 0..255). For a clip a list of its frames, or an array `[F, H, W, 3]`.
        report: what `run.reports` holds, or one of its images.
        index: which image of a `Report`.
        width: widest panel in pixels; smaller pictures are enlarged to it.

    Returns:
        An RGB picture with a title, one or two panels (for a clip one a frame) and a legend.

    Raises:
        VTCError: the file is no image, there is no such index, or the picture has another shape
            than the one in the report.
    """
    title = "kept tokens"
    if isinstance(report, Report):
        title = _title(report)
        if not -len(report.images) <= index < len(report.images):
            raise VTCError(f"index: got {index}, the report has {len(report.images)} image(s)")
        report = report.images[index]
    pictures = _frames(image, report)
    for picture in pictures:
        _check_shape(picture, report)
    names = ["thumbnail"] if report.tile_grid is None else ["thumbnail", "crops"]
    if len(pictures) > 1:
        width //= 2
    panels, labels, kinds = [], [], set()
    for frame, picture in enumerate(pictures):
        for name in names:
            panels.append(paint_panel(picture, report, name, width, frame=frame))
            labels.append(_label(report, name, frame))
            cells = cells_of(report, name, picture.size, picture.size, frame)
            kinds |= set(np.unique(cells.kind).tolist())
    return _page(title, _counts(report), panels, labels, _legend(report, kinds))


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


# -- texts and page ----------------------------------------------------------------------------


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
        f"{report.patches_after} of {report.patches_before} patch tokens ({report.retention:.1%})"
    )
    if report.separators_before:
        text += f" + {report.separators_after} of {report.separators_before} separators"
    return text


def _label(report: ImageReport, name: str, frame: int) -> str:
    tiles = report.per_tile[1:] if name == "crops" else report.per_tile[frame : frame + 1]
    after, before = sum(tile[0] for tile in tiles), sum(tile[1] for tile in tiles)
    what = name
    if report.frames > 1:
        what = f"frame {frame + 1}"
    elif report.tile_grid is None:
        what = "single tile"
    elif name == "crops":
        what = f"{report.tile_grid[0]} x {report.tile_grid[1]} crops"
    return f"{what} · {after} of {before} · {after / max(before, 1):.0%}"


def _legend(report: ImageReport, kinds: set[int]) -> list[tuple[str, str]]:
    """`(swatch, text)` of what the panels show."""
    texts = {
        3: ("kept", "kept"),
        2: ("merged", "merged: fainter the less a patch counts in its token"),
        1: ("dropped", "dropped"),
        0: ("outside", "no token looks here"),
    }
    entries = [entry for kind, entry in texts.items() if kind in kinds]
    if report.tile_grid is not None:
        entries.append(("border", "border of a crop, with its retention"))
    return entries


def _page(
    title: str,
    counts: str,
    panels: list[Image.Image],
    labels: list[str],
    legend: list[tuple[str, str]],
) -> Image.Image:
    """Title, panels side by side (one above the other for wide pictures), legend."""
    wide = max(panel.width for panel in panels)
    tall = max(panel.height for panel in panels)
    columns = min(len(panels), 1 if wide > 1.9 * tall else 2 if len(panels) == 2 else 4)
    rows = -(-len(panels) // columns)
    label_height, legend_line, header = 28, 32, 78
    across = max(
        columns * (wide + GAP) - GAP,
        int(font(24).getlength(title)),
        int(font(17).getlength(counts)),
        420,
    )
    lines = _flow(
        [(kind, text, 34 + 10 + int(font(15).getlength(text))) for kind, text in legend], across
    )
    down = rows * (tall + label_height + GAP) - GAP
    height = GAP + header + down + 14 + legend_line * len(lines) + GAP - 6
    page = Image.new("RGB", (across + 2 * GAP, height), PAGE)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP + 12), title, INK, font=font(24), anchor="lm")
    draw.text((GAP, GAP + 44), counts, FAINT, font=font(17), anchor="lm")
    for number, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        x = GAP + number % columns * (wide + GAP)
        y = GAP + header + number // columns * (tall + label_height + GAP)
        draw.text((x, y + 10), label, INK, font=font(16), anchor="lm")
        page.paste(panel, (x, y + label_height))
    y = GAP + header + down + 14
    for line in lines:
        for offset, kind, text in line:
            page.paste(swatch(kind), (GAP + offset, y + 4))
            draw.text((GAP + offset + 44, y + 14), text, FAINT, font=font(15), anchor="lm")
        y += legend_line
    return page


def _flow(items: list[tuple[str, str, int]], width: int) -> list[list[tuple[int, str, str]]]:
    """Legend entries broken into lines: `(x, kind, text)`."""
    lines: list[list[tuple[int, str, str]]] = [[]]
    x = 0
    for kind, text, wide in items:
        if x and x + wide > width:
            lines.append([])
            x = 0
        lines[-1].append((x, kind, text))
        x += wide + 28
    return lines
