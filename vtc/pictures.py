"""Pictures of what a method kept, merged and dropped, painted over the original image.

Kept patches stay clear, dropped ones are washed out, merged ones are tinted (the fainter the more
patches share a token). Anyres images get two panels, one for the thumbnail and one for the crops:
the same picture twice, because both cover all of it. Needs numpy and Pillow only.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from vtc.errors import VTCError
from vtc.functional.anyres import canvas_provenance
from vtc.report import ImageReport, Report

Array = np.ndarray

PAGE, INK, FAINT = (250, 250, 252), (28, 32, 44), (104, 110, 126)
WASH, OUTSIDE = np.array([26.0, 30.0, 44.0]), np.array([58.0, 61.0, 72.0])
TINT, GROUP = np.array([255.0, 163.0, 26.0]), np.array([255.0, 112.0, 0.0])
GAP = 20  # px between panels and around the page
WIDTH, HEIGHT = 640, 720  # px, the box a panel is fitted into
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
    kinds = [_cells(report, name, picture.size, picture.size).kind for name in names]
    legend = _legend(report, set(np.concatenate([np.unique(kind) for kind in kinds])))
    return _page(title, _counts(report), panels, labels, legend)


def paint_panel(
    picture: Image.Image, report: ImageReport, name: str = "crops", width: int = WIDTH
) -> Image.Image:
    """One bare panel, without texts around it.

    Args:
        picture: RGB.
        name: `"thumbnail"` for tile 0 (all there is without crops) or `"crops"`.
        width: widest panel in pixels; the height is bounded in proportion.
    """
    scale = min(width / picture.width, HEIGHT / WIDTH * width / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    large = picture.resize(size, Image.Resampling.LANCZOS)
    cells = _cells(report, name, size, picture.size)
    pixels = _wash(np.asarray(large, dtype=float), cells)
    _edges(pixels, cells)
    panel = Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
    if name == "crops":
        panel = _crop_borders(panel, cells, report)
    return panel


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


# -- geometry ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cells:
    """Per-pixel maps of a panel, each `[H, W]`.

    Attributes:
        share: see `ImageReport.share`; -1 where no token looks.
        group: token of a merged patch, -1 elsewhere.
        patch: number of the canvas cell, -1 outside the canvas.
        tile: tile of the cell, -1 outside the canvas.
        limits: `(top, left, cells per pixel down, cells per pixel across)` of the picture on the
            canvas, in cells.
    """

    share: Array
    group: Array
    patch: Array
    tile: Array
    limits: tuple[float, float, float, float]

    @property
    def kind(self) -> Array:
        """0 no token looks, 1 dropped, 2 merged, 3 kept."""
        return np.select([self.share < 0, self.group >= 0, self.share > 0], [0, 2, 3], 1)


def _cells(
    report: ImageReport, name: str, size: tuple[int, int], original: tuple[int, int]
) -> _Cells:
    """Which cell of the canvas each pixel of a panel of `size` (width, height) lies in."""
    share, group = report.share.numpy(), report.group.numpy()
    if name == "thumbnail" or report.tile_grid is None:
        rows, cols = report.patch_grid
        patch = np.arange(rows * cols).reshape(rows, cols)
        tile = np.zeros_like(patch)
        stretched = report.tile_grid is not None or report.fit == "stretch"
    else:
        tile, patch = (x.numpy() for x in canvas_provenance(report.patch_grid, report.tile_grid))
        rows, cols = tile.shape
        stretched = report.unpad == "none"
    top, left, down, across = _placement(rows, cols, original, stretched, crops=name == "crops")
    width, height = size
    row = np.floor(top + (np.arange(height) + 0.5) / height * down).astype(int)
    col = np.floor(left + (np.arange(width) + 0.5) / width * across).astype(int)
    inside = ((row >= 0) & (row < rows))[:, None] & ((col >= 0) & (col < cols))[None, :]
    at = (row.clip(0, rows - 1)[:, None], col.clip(0, cols - 1)[None, :])
    return _Cells(
        share=np.where(inside, share[tile, patch][at], -1.0),
        group=np.where(inside, group[tile, patch][at], -1),
        patch=np.where(inside, np.arange(rows * cols).reshape(rows, cols)[at], -1),
        tile=np.where(inside, tile[at], -1),
        limits=(top, left, down / height, across / width),
    )


def _placement(
    rows: int, cols: int, original: tuple[int, int], stretched: bool, crops: bool
) -> tuple[float, float, float, float]:
    """Where the picture lies on a canvas of `rows x cols` cells: `(top, left, height, width)`.

    The crops' canvas holds the whole picture, centred, with padding on two sides. A single tile
    that was cut out (`ImageReport.fit`) is the other way round: the picture is larger than it.
    """
    if stretched:
        return 0.0, 0.0, float(rows), float(cols)
    width, height = original
    fit = min if crops else max
    cell = fit(rows / height, cols / width)  # cells per pixel of the original
    down, across = height * cell, width * cell
    return (rows - down) / 2, (cols - across) / 2, down, across


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


# -- paint -------------------------------------------------------------------------------------


def _wash(pixels: Array, cells: _Cells) -> Array:
    """`[H, W, 3]` floats: clear, tinted, washed out or hatched."""
    share = cells.share[..., None]
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    washed = WASH + 0.34 * grey[..., None]
    merged = (cells.group >= 0)[..., None]
    clear = np.where(merged, np.sqrt(share.clip(min=0)), share.clip(min=0))
    out = washed + clear.clip(max=1) ** 0.7 * (pixels - washed)
    tint = np.where(merged, 0.10 + 0.26 * clear, 0.0)
    out = out + tint * (TINT - out)
    diagonal = np.add.outer(*(np.arange(n) for n in cells.share.shape))
    hatch = np.where(diagonal % 9 < 2, 1.22, 1.0)[..., None]
    outside = (OUTSIDE + 0.10 * grey[..., None]) * hatch
    return np.where(share < 0, outside, out)


def _edges(pixels: Array, cells: _Cells) -> None:
    """Lines, in place: around kept regions, around merged tokens, and a faint grid of patches."""
    kind = cells.kind
    for axis in (0, 1):
        one = tuple(slice(None, -1) if a == axis else slice(None) for a in (0, 1))
        two = tuple(slice(1, None) if a == axis else slice(None) for a in (0, 1))
        border = cells.patch[one] != cells.patch[two]
        kept = border & ((kind[one] == 3) != (kind[two] == 3))
        group = border & ~kept & (cells.group[one] != cells.group[two])
        grid = border & ~kept & ~group & (kind[one] % 2 == 1)
        for mask, colour, strength in (
            (grid, WASH, 0.16),
            (group, GROUP, 0.8),
            (kept, np.array([255.0, 255.0, 255.0]), 0.8),
        ):
            target = pixels[two]
            target[mask] += strength * (colour - target[mask])


def _crop_borders(panel: Image.Image, cells: _Cells, report: ImageReport) -> Image.Image:
    """Lines between crops, and each crop's retention in its corner."""
    assert report.tile_grid is not None
    draw = ImageDraw.Draw(panel)
    width, height = panel.size
    top, left, down, across = cells.limits
    (rows, cols), (crop_rows, crop_cols) = report.patch_grid, report.tile_grid
    ys = [(rows * i - top) / down for i in range(crop_rows + 1)]
    xs = [(cols * i - left) / across for i in range(crop_cols + 1)]
    for spread, colour in ((2, INK), (0, (64, 196, 255))):
        for y in ys[1:-1]:
            draw.rectangle((0, round(y) - 1 - spread // 2, width, round(y) + spread // 2), colour)
        for x in xs[1:-1]:
            draw.rectangle((round(x) - 1 - spread // 2, 0, round(x) + spread // 2, height), colour)
    text_size = min(15, max(11, round(width / 28)))
    font = _font(text_size)
    for tile in range(1, report.num_tiles):
        after, before = report.per_tile[tile]
        seen = (cells.tile == tile) & (cells.share >= 0)
        if not seen.any():
            continue
        y, x = int(seen.any(1).argmax()), int(seen.any(0).argmax())
        text = f"{after / before:.0%}" if before else "-"
        wide = draw.textlength(text, font=font)
        box = (x + 6, y + 6, x + 18 + wide, y + 13 + text_size)
        draw.rounded_rectangle(box, 6, INK, (64, 196, 255))
        draw.text((x + 12, (box[1] + box[3]) / 2), text, (255, 255, 255), font=font, anchor="lm")
    return panel


# -- texts and page ----------------------------------------------------------------------------


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


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
        2: ("merged", "merged: fainter where more patches share a token"),
        1: ("dropped", "dropped"),
        0: ("outside", "no token looks here"),
    }
    entries = [entry for kind, entry in texts.items() if kind in kinds]
    if report.tile_grid is not None:
        entries.append(("border", "border of a crop, with its retention"))
    return entries


def _swatch(kind: str) -> Image.Image:
    """A sample of a kind of area: a gradient painted as the panels are."""
    wide, tall = 34, 20
    ramp = np.linspace(0.75, 1.0, wide)[None, :, None] * np.array([150.0, 205.0, 130.0])
    pixels = np.broadcast_to(ramp, (tall, wide, 3)).copy()
    share = {"kept": 1.0, "merged": 0.25, "dropped": 0.0, "outside": -1.0}.get(kind, 0.0)
    flat = np.full((tall, wide), 0)
    group = flat if kind == "merged" else flat - 1
    cells = _Cells(flat + share, group, flat, flat, (0.0, 0.0, 1.0, 1.0))
    swatch = Image.fromarray(_wash(pixels, cells).clip(0, 255).astype(np.uint8))
    if kind == "border":
        draw = ImageDraw.Draw(swatch)
        draw.rectangle((0, 8, wide, 11), INK)
        draw.rectangle((0, 9, wide, 10), (64, 196, 255))
    return swatch


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
    across = max(across, int(_font(24).getlength(title)), int(_font(17).getlength(counts)), 420)
    lines = _flow(
        [(kind, text, 34 + 10 + int(_font(15).getlength(text))) for kind, text in legend], across
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
    draw.text((GAP, GAP + 12), title, INK, font=_font(24), anchor="lm")
    draw.text((GAP, GAP + 44), counts, FAINT, font=_font(17), anchor="lm")
    x, y = GAP, GAP + header
    for panel, label in zip(panels, labels, strict=True):
        draw.text((x, y + 10), label, INK, font=_font(16), anchor="lm")
        page.paste(panel, (x, y + label_height))
        if stacked:
            y += panel.height + label_height + GAP
        else:
            x += panel.width + GAP
    y = GAP + header + down + 14
    for line in lines:
        for offset, kind, text in line:
            page.paste(_swatch(kind), (GAP + offset, y + 4))
            draw.text((GAP + offset + 44, y + 14), text, FAINT, font=_font(15), anchor="lm")
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
