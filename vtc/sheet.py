"""The sheet that panels of a kept-token picture stand on: heading, labels, legend."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from vtc.panels import INK, font, swatch

PAGE, FAINT = (250, 250, 252), (90, 96, 112)
GAP = 20  # px between panels and around the page
SWATCH = (44, 26)  # px
LABEL, LEGEND = 28, 36  # px, lines of labels and of the legend
NARROWEST = 420  # px, for texts over a slim panel


@dataclass(frozen=True)
class Heading:
    """Lines above the panels; each is broken where the page is narrow."""

    title: str
    counts: str
    facts: str

    def lines(self, width: int) -> list[tuple[str, int, tuple[int, int, int]]]:
        """`(text, font size, colour)` of every line."""
        found = []
        styles = ((self.title, 24, INK), (self.counts, 17, FAINT), (self.facts, 15, FAINT))
        for text, size, colour in styles:
            found += [(line, size, colour) for line in wrap(text, size, width)]
        return found


def sheet(
    heading: Heading,
    panels: list[Image.Image],
    labels: list[str],
    legend: list[tuple[str | float, str]],
    sample: Image.Image,
) -> Image.Image:
    """Heading, panels side by side (one above the other for wide pictures), legend.

    Args:
        labels: one above each panel.
        legend: `(kind, text)`, see `panels.swatch`.
        sample: the piece of the picture that swatches are painted on.
    """
    widest = max(panel.width for panel in panels)
    tall = max(panel.height for panel in panels)
    column = max(widest, *(math.ceil(font(16).getlength(label)) for label in labels))
    columns = min(
        len(panels), 1 if widest > 1.9 * tall and len(panels) < 4 else _columns(len(panels))
    )
    rows = -(-len(panels) // columns)
    across = max(columns * (column + GAP) - GAP, NARROWEST)
    top = heading.lines(across)
    head = sum(round(1.45 * size) for _, size, _ in top) + GAP
    entries = _flow(legend, across)
    down = rows * (tall + LABEL + GAP) - GAP
    height = GAP + head + down + 14 + LEGEND * len(entries) + GAP - 6
    out = Image.new("RGB", (across + 2 * GAP, height), PAGE)
    draw = ImageDraw.Draw(out)
    y = GAP
    for text, size, colour in top:
        draw.text((GAP, y + size * 0.6), text, colour, font=font(size), anchor="lm")
        y += round(1.45 * size)
    for number, (panel, label) in enumerate(zip(panels, labels, strict=True)):
        x = GAP + number % columns * (column + GAP)
        y = GAP + head + number // columns * (tall + LABEL + GAP)
        draw.text((x, y + 10), label, INK, font=font(16), anchor="lm")
        out.paste(panel, (x, y + LABEL))
    y = GAP + head + down + 14
    for line in entries:
        for offset, kind, text in line:
            out.paste(swatch(kind, sample), (GAP + offset, y + 2))
            draw.text(
                (GAP + offset + SWATCH[0] + 10, y + 15), text, FAINT, font=font(15), anchor="lm"
            )
        y += LEGEND
    return out


def _columns(panels: int) -> int:
    """How many panels stand side by side: thumbnail and crops, or a strip of frames."""
    return 2 if panels == 2 else 4 if panels <= 8 else 6


def wrap(text: str, size: int, width: int) -> list[str]:
    """Lines that are no wider than `width`; a word that is wider by itself ends in dots."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(size).getlength(longer) <= width:
            lines[-1] = longer
            continue
        while font(size).getlength(word) > width and len(word) > 1:
            word = word.rstrip("…")[:-1] + "…"
        lines.append(word)
    return lines


def _flow(
    items: list[tuple[str | float, str]], width: int
) -> list[list[tuple[int, str | float, str]]]:
    """Legend entries broken into lines: `(x, kind, text)`."""
    lines: list[list[tuple[int, str | float, str]]] = [[]]
    x = 0
    for kind, text in items:
        wide = SWATCH[0] + 10 + math.ceil(font(15).getlength(text))
        if x and x + wide > width:
            lines.append([])
            x = 0
        lines[-1].append((x, kind, text))
        x += wide + 28
    return lines
