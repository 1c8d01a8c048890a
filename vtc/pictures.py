"""Pictures of what a method kept, merged and dropped, painted over the original image.

Kept patches stay clear, dropped ones are washed out, merged ones are tinted (the fainter the less
they count in their token). Anyres images get two panels, one for the thumbnail and one for the
crops: the same picture twice, because both cover all of it. Needs numpy and Pillow only.
"""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from vtc.errors import VTCError
from vtc.panels import INK, WIDTH, Array, cells_of, font, paint_panel, swatch
from vtc.report import ImageReport, Report

PAGE, FAINT = (250, 250, 252), (104, 110, 126)
GAP = 20  # px between panels and around the page
ASPECT_TOLERANCE = 0.02


def visualize(
    image: Image.Image | str | os.PathLike[str] | Array,
    report: Report | ImageReport,
    index: int = 0,
    width: int = WIDTH,
) -> Image.Image:
    """Paint a report over its picture.

    Args:
        image: the picture the report is about, in any resolution: a PIL image, a file, or an array
            `[H, W]`, `[H, W, 3]` or `[H, W, 4]` (uint8, or floats in 0..1).
        report: what `run.reports` holds, or one of its images.
        index: which image of a `Report`.
        width: widest panel in pixels; smaller pictures are enlarged to it.

    Returns:
        An RGB picture with a title, one or two panels and a legend.

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
    picture = load_image(image)
    _check_shape(picture, report)
    names = ["thumbnail"] if report.tile_grid is None else ["thumbnail", "crops"]
    panels = [paint_panel(picture, report, name, width) for name in names]
    labels = [_label(report, name) for name in names]
    kinds = [cells_of(report, name, picture.size, picture.size).kind for name in names]
    legend = _legend(report, set(np.concatenate([np.unique(kind) for kind in kinds])))
    return _page(title, _counts(report), panels, labels, legend)


def load_image(image: Image.Image | str | os.PathLike[str] | Array) -> Image.Image:
    """An RGB picture from a PIL image, a file (turned upright by its EXIF tag) or an array."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise VTCError(f"image: got an array of shape {image.shape}, expected [H, W, channels]")
        if image.dtype != np.uint8:
            image = np.clip(np.asarray(image, float) * 255 + 0.5, 0, 255).astype(np.uint8)
        return Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image).convert(
            "RGB"
        )
    try:
        with Image.open(image) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError as error:
        raise VTCError(
            f"image: {str(image)!r} is not an image file that Pillow can read"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise VTCError(f"image: cannot read {str(image)!r}: {reason}") from error
    except (AttributeError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise VTCError(f"image: cannot read {image!r}: {error}") from error


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


def _label(report: ImageReport, name: str) -> str:
    tiles = report.per_tile[:1] if name == "thumbnail" else report.per_tile[1:]
    after, before = sum(tile[0] for tile in tiles), sum(tile[1] for tile in tiles)
    what = name
    if report.tile_grid is None:
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
    stacked = len(panels) > 1 and panels[0].width > 1.9 * panels[0].height
    label_height, legend_line = 28, 32
    across = max(p.width for p in panels)
    if not stacked:
        across = sum(p.width for p in panels) + GAP * (len(panels) - 1)
    across = max(across, int(font(24).getlength(title)), int(font(17).getlength(counts)), 420)
    lines = _flow(
        [(kind, text, 34 + 10 + int(font(15).getlength(text))) for kind, text in legend], across
    )
    down = (
        sum(p.height + label_height + GAP for p in panels) - GAP
        if stacked
        else (max(p.height for p in panels) + label_height)
    )
    header = 78
    height = GAP + header + down + 14 + legend_line * len(lines) + GAP - 6
    page = Image.new("RGB", (across + 2 * GAP, height), PAGE)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP + 12), title, INK, font=font(24), anchor="lm")
    draw.text((GAP, GAP + 44), counts, FAINT, font=font(17), anchor="lm")
    x, y = GAP, GAP + header
    for panel, label in zip(panels, labels, strict=True):
        draw.text((x, y + 10), label, INK, font=font(16), anchor="lm")
        page.paste(panel, (x, y + label_height))
        if stacked:
            y += panel.height + label_height + GAP
        else:
            x += panel.width + GAP
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
