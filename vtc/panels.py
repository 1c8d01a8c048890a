"""One panel of a kept-token picture: which patch each pixel lies in, and how it is painted.

The picture keeps its own shape. Patches are laid over it where the model saw it: the thumbnail is
the whole picture squashed to a square; the crops are cut from a resized, centre-padded copy, so
that their canvas reaches over two edges of the picture; a single tile may be cut from its middle.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vtc.functional.anyres import canvas_provenance, valid_region
from vtc.report import ImageReport

Array = np.ndarray

INK, CROP = (28, 32, 44), (64, 196, 255)
WASH, OUTSIDE = np.array([26.0, 30.0, 44.0]), np.array([58.0, 61.0, 72.0])
TINT, GROUP = np.array([255.0, 163.0, 26.0]), np.array([255.0, 112.0, 0.0])
LAYERS = np.array([54.0, 110.0, 255.0])
WHITE = np.array([255.0, 255.0, 255.0])
WIDTH, HEIGHT = 640, 720  # px, the box a panel is fitted into
SLIMMEST = 5.0  # most by which one side of a panel is longer than the other


@functools.cache
def font(size: int) -> Any:
    """Pillow's own typeface."""
    return ImageFont.load_default(size)


def paint_panel(
    picture: Image.Image,
    report: ImageReport,
    name: str = "crops",
    width: int = WIDTH,
    labels: bool = True,
    frame: int = 0,
) -> Image.Image:
    """One bare panel, without texts around it.

    Args:
        picture: RGB.
        name: `"thumbnail"` for tile 0 (all there is without crops) or `"crops"`.
        width: widest panel in pixels; the height is bounded in proportion.
        labels: write each crop's retention into its corner.
        frame: which frame of a clip the picture is.
    """
    size = panel_size(picture.size, width)
    large = picture.resize(size, Image.Resampling.LANCZOS)
    cells = cells_of(report, name, size, picture.size, frame)
    pixels = _wash(np.asarray(large, dtype=float), cells)
    _edges(pixels, cells)
    panel = Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
    if name == "crops":
        _crop_borders(panel, cells, report)
        if labels:
            _crop_labels(panel, cells, report)
    return panel


def panel_size(original: tuple[int, int], width: int) -> tuple[int, int]:
    """Width and height of a panel for a picture of `original` width and height.

    A picture whose sides differ more than `SLIMMEST` to 1 is stretched to that, or nothing in it could
    be told apart.
    """
    tallest = HEIGHT / WIDTH * width
    scale = min(width / original[0], tallest / original[1])
    wide, tall = original[0] * scale, original[1] * scale
    wide, tall = max(wide, min(width, tall / SLIMMEST)), max(tall, min(tallest, wide / SLIMMEST))
    return max(1, round(wide)), max(1, round(tall))


# -- geometry ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """Per-pixel maps of a panel, each `[H, W]`.

    Attributes:
        share: see `ImageReport.share`; -1 where no token looks.
        group: token of a merged patch, -1 elsewhere.
        patch: number of the patch, all tiles counted on, -1 outside the canvas.
        tile: tile of the cell, -1 outside the canvas.
        read: see `ImageReport.read`.
        limits: `(top, left, cells per pixel down, cells per pixel across)` of the picture on the
            canvas, in cells.
    """

    share: Array
    group: Array
    patch: Array
    tile: Array
    read: Array
    limits: tuple[float, float, float, float]

    @property
    def kind(self) -> Array:
        """0 no token looks, 1 dropped, 2 merged, 3 kept, 4 dropped inside the language model."""
        cases = [self.share < 0, self.group >= 0, self.share > 0, self.read > 0]
        return np.select(cases, [0, 2, 3, 4], 1)


def cells_of(
    report: ImageReport, name: str, size: tuple[int, int], original: tuple[int, int], frame: int = 0
) -> Cells:
    """Which cell of the canvas each pixel of a panel of `size` (width, height) lies in."""
    share, group, read = (x.numpy() for x in (report.share, report.group, report.read))
    if name == "thumbnail" or report.tile_grid is None:
        rows, cols = report.patch_grid
        patch = np.arange(rows * cols).reshape(rows, cols)
        tile = np.full_like(patch, frame)
        # a grid of another shape than a square was made to fit the picture
        stretched = report.tile_grid is not None or report.fit == "stretch" or rows != cols
    else:
        tile, patch = (x.numpy() for x in canvas_provenance(report.patch_grid, report.tile_grid))
        rows, cols = tile.shape
        stretched = report.packing.unpad == "none"
        if report.packing.shrink is not None:
            at = _nearest_tokens(share[tile, patch], report)
            tile, patch = tile[at], patch[at]
    top, left, down, across = _placement(rows, cols, original, stretched, crops=name == "crops")
    width, height = size
    row = np.floor(top + (np.arange(height) + 0.5) / height * down).astype(int)
    col = np.floor(left + (np.arange(width) + 0.5) / width * across).astype(int)
    inside = ((row >= 0) & (row < rows))[:, None] & ((col >= 0) & (col < cols))[None, :]
    at = (row.clip(0, rows - 1)[:, None], col.clip(0, cols - 1)[None, :])
    return Cells(
        share=np.where(inside, share[tile, patch][at], -1.0),
        group=np.where(inside, group[tile, patch][at], -1),
        patch=np.where(inside, (tile * share.shape[1] + patch)[at], -1),
        tile=np.where(inside, tile[at], -1),
        read=np.where(inside, read[tile, patch][at], 0.0),
        limits=(top, left, down / height, across / width),
    )


def _nearest_tokens(share: Array, report: ImageReport) -> tuple[Array, Array]:
    """For each canvas cell the cell whose token stands for it, where a canvas was scaled down.

    The lines between those that have tokens go to the nearest one; padding stays as it is.
    """
    rows, cols = share.shape
    region = (0, rows, 0, cols)
    if report.packing.unpad != "none" and report.image_size is not None:
        region = valid_region(report.image_size, (rows, cols), report.packing.unpad)
    lines = []
    for axis, extent, low, high in ((1, rows, *region[:2]), (0, cols, *region[2:])):
        have = np.nonzero((share >= 0).any(axis))[0]
        line = np.arange(extent)
        if len(have):
            line[low:high] = have[np.abs(line[low:high, None] - have).argmin(1)]
        lines.append(line)
    return lines[0][:, None], lines[1][None, :]


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


# -- paint -------------------------------------------------------------------------------------


def _wash(pixels: Array, cells: Cells) -> Array:
    """`[H, W, 3]` floats: clear, tinted, washed out or hatched; what goes inside the language model is
    blue, the fainter the sooner."""
    share = cells.share[..., None]
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    washed = WASH + 0.34 * grey[..., None]
    merged = (cells.group >= 0)[..., None]
    clear = np.where(merged, np.sqrt(share.clip(min=0)), share.clip(min=0))
    out = washed + clear.clip(max=1) ** 0.7 * (pixels - washed)
    tint = np.where(merged, 0.10 + 0.26 * clear, 0.0)
    out = out + tint * (TINT - out)
    later = np.where(cells.kind == 4, cells.read, 0.0)[..., None]
    out = out + later * (0.55 * (pixels - out) + 0.6 * (LAYERS - out))
    diagonal = np.add.outer(*(np.arange(n) for n in cells.share.shape))
    hatch = np.where(diagonal % 9 < 2, 1.22, 1.0)[..., None]
    outside = (OUTSIDE + 0.10 * grey[..., None]) * hatch
    return np.where(share < 0, outside, out)


def _edges(pixels: Array, cells: Cells) -> None:
    """Lines, in place: around kept regions, around merged tokens, and a faint grid of patches."""
    kind = cells.kind
    # lines around patches of a few pixels would be all that is seen
    outline = 0.8 * float(np.clip((1 / max(cells.limits[2:]) - 2) / 8, 0.3, 1))
    for axis in (0, 1):
        one = tuple(slice(None, -1) if a == axis else slice(None) for a in (0, 1))
        two = tuple(slice(1, None) if a == axis else slice(None) for a in (0, 1))
        border = cells.patch[one] != cells.patch[two]
        kept = border & ((kind[one] == 3) != (kind[two] == 3))
        group = border & ~kept & (cells.group[one] != cells.group[two])
        grid = border & ~kept & ~group & (kind[one] % 2 == 1)
        share = np.maximum(cells.share[one], cells.share[two]).clip(min=0)
        strong = 0.8 * np.minimum(1.0, 2 * np.sqrt(share))
        for mask, colour, strength in (
            (grid, WASH, np.full_like(share, 0.16)),
            (group, GROUP, strong),
            (kept, WHITE, np.full_like(share, outline)),
        ):
            target = pixels[two]
            target[mask] += strength[mask][:, None] * (colour - target[mask])


def _crop_borders(panel: Image.Image, cells: Cells, report: ImageReport) -> None:
    """Lines between crops."""
    assert report.tile_grid is not None
    draw = ImageDraw.Draw(panel)
    width, height = panel.size
    top, left, down, across = cells.limits
    (rows, cols), (crop_rows, crop_cols) = report.patch_grid, report.tile_grid
    ys = [(rows * i - top) / down for i in range(crop_rows + 1)]
    xs = [(cols * i - left) / across for i in range(crop_cols + 1)]
    for spread, colour in ((2, INK), (0, CROP)):
        for y in ys[1:-1]:
            draw.rectangle((0, round(y) - 1 - spread // 2, width, round(y) + spread // 2), colour)
        for x in xs[1:-1]:
            draw.rectangle((round(x) - 1 - spread // 2, 0, round(x) + spread // 2, height), colour)


def _crop_labels(panel: Image.Image, cells: Cells, report: ImageReport) -> None:
    """Each crop's retention, in the corner of what is seen of it, where there is room for it."""
    draw = ImageDraw.Draw(panel)
    size = min(15, max(11, round(panel.width / 28)))
    for tile in range(1, report.num_tiles):
        after, before = report.per_tile[tile]
        seen = (cells.tile == tile) & (cells.share >= 0)
        if not seen.any():
            continue
        text = f"{after / before:.0%}" if before else "-"
        ys, xs = np.nonzero(seen.any(1))[0], np.nonzero(seen.any(0))[0]
        y, x = int(ys[0]), int(xs[0])
        for scale, pad, off in ((size, 6, 6), (11, 3, 3)):  # a small one where the crop is small
            typeface = font(scale)
            wide = draw.textlength(text, font=typeface) + 2 * pad
            box = (x + off, y + off, x + off + wide, y + off + scale + pad)
            if box[2] < xs[-1] - 1 and box[3] < ys[-1] - 1:
                draw.rounded_rectangle(box, pad, INK, CROP)
                middle = (box[0] + pad, (box[1] + box[3]) / 2)
                draw.text(middle, text, (255, 255, 255), font=typeface, anchor="lm")
                break


def swatch(kind: str | float, sample: Image.Image) -> Image.Image:
    """A sample of a kind of area: a piece of the picture itself, painted as the panels are.

    Args:
        kind: "kept", "merged", "dropped", "outside", or "border" of a crop; a number for what is dropped
            inside the language model, the share of its layers that read it.
        sample: from `excerpt`.
    """
    wide, tall = sample.size
    level = {"kept": 1.0, "outside": -1.0}.get(kind, 0.0) if isinstance(kind, str) else 0.0
    share = np.full((tall, wide), level)
    read = np.full((tall, wide), 0.0 if isinstance(kind, str) else kind)
    patch, group = np.zeros((tall, wide), int), np.full((tall, wide), -1)
    if kind == "merged":  # three patches of one token, the last counts least
        column = np.arange(wide) * 3 // wide
        share[:], patch[:], group = np.array([0.6, 0.3, 0.08])[column], column, patch * 0
    cells = Cells(share, group, patch, patch, read, (0.0, 0.0, 1.0, 1.0))
    pixels = _wash(np.asarray(sample, dtype=float), cells)
    _edges(pixels, cells)
    out = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(out)
    if kind == "kept":  # as around a kept region
        draw.rectangle((0, 0, wide - 1, tall - 1), outline=tuple(WHITE.astype(int)))
    elif kind == "border":
        middle = tall // 2
        draw.rectangle((0, middle - 2, wide, middle + 1), INK)
        draw.rectangle((0, middle - 1, wide, middle), CROP)
    return out


def excerpt(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The piece of a picture of `size` (width, height) in which there is most to see."""
    wide, tall = size
    near = panel_size(picture.size, 6 * wide)
    pixels = np.asarray(picture.resize(near, Image.Resampling.LANCZOS))
    places = [
        (y, x)
        for y in range(0, near[1] - tall + 1, max(1, tall // 2))
        for x in range(0, near[0] - wide + 1, max(1, wide // 2))
    ]
    y, x = max(places, key=lambda at: _lively(pixels[at[0] : at[0] + tall, at[1] : at[1] + wide]))
    return Image.fromarray(pixels[y : y + tall, x : x + wide])


def _lively(pixels: Array) -> float:
    """How much there is to see: changes and colours, but not black, white or that of merged patches."""
    values = pixels.astype(float)
    colour = (values.max(-1) - values.min(-1)).mean()
    tinted = np.abs(values.mean((0, 1)) - TINT).mean()
    return float(values.std() + 0.5 * colour + 0.5 * tinted - 0.5 * abs(values.mean() - 128))
