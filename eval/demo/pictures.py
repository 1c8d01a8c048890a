"""Kept-token pictures of the demo: single ones, a contact sheet an image, and a page with all."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

import vtc
from vtc.errors import VTCError
from vtc.eval.accuracy.runner import Runner
from vtc.eval.common.settings import FULL, Setting, share_label
from vtc.eval.demo.run import SEED, Demo, caption, cells
from vtc.eval.suites.base import Item
from vtc.panels import paint_panel
from vtc.report import Report

PANEL, GAP = 300, 14  # px, on contact sheets
PAGE, INK, FAINT = (250, 250, 252), (28, 32, 44), (104, 110, 126)
SHOWN = 0.25  # retention of the single pictures


@dataclass(frozen=True)
class Exhibit:
    """A picture to show.

    Attributes:
        name: for file names.
        title: what it is.
        image: RGB.
        question: what the model is asked; text-guided methods read it.
    """

    name: str
    title: str
    image: Image.Image
    question: str


def exhibits() -> list[Exhibit]:
    """A photograph, a document page and a test scene of the reference VLM.

    Raises:
        VTCError: scikit-image, which ships the first two, is missing.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise VTCError(
            "demo: the pictures need scikit-image: pip install 'vtc-vlm[demo]', or --no-pictures"
        ) from error
    from vtc.eval.reference import scenes

    scene = next(s for s in scenes("test", 50, SEED, ["mixed"]) if s.grid == (2, 2))
    coffee = "Photograph: a cup of coffee, by Rachel Michetti (scikit-image)"
    page = "Document page: scanned text (scikit-image)"
    return [
        Exhibit("photo", coffee, Image.fromarray(data.coffee()), "what is in the image?"),
        Exhibit("page", page, Image.fromarray(data.page()).convert("RGB"), "what is the text?"),
        Exhibit("scene", "Test scene of the reference VLM", scene.image, scene.questions[0].text),
    ]


def write(
    ask: Runner,
    chosen: Sequence[Setting],
    folder: Path,
    step: Callable[[], Any] = lambda: None,
) -> list[tuple[Exhibit, Path, list[Path]]]:
    """Write all pictures below `folder`.

    Args:
        ask: from `run.runner`.
        chosen: its settings.
        step: called once a picture and compressed setting.

    Returns:
        For each exhibit the contact sheet and the single pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compressed = [setting for setting in chosen if setting != FULL]
    out = []
    for shown in exhibits():
        item, found = Item(shown.name, (), shown.question, ()), []
        for setting in compressed:
            found.append((setting, ask.report(setting, item, [shown.image])))
            step()
        sheet = folder / f"{shown.name}_sheet.png"
        contact_sheet(shown, found).save(sheet)
        singles = []
        for setting, report in found:
            if setting.retention in (SHOWN, None) or len(compressed) == 1:
                path = folder / f"{shown.name}_{setting.key.replace('@', '_')}.png"
                vtc.visualize(shown.image, report).save(path)
                singles.append(path)
        out.append((shown, sheet, singles))
    return out


def contact_sheet(shown: Exhibit, found: Sequence[tuple[Setting, Report]]) -> Image.Image:
    """The crops' panels of all settings: a line a method, a column a retention."""
    methods = list(dict.fromkeys(setting.method for setting, _ in found))
    retentions = list(dict.fromkeys(setting.retention for setting, _ in found))
    panels = {
        (setting.method, setting.retention): (
            paint_panel(shown.image, report.images[0], "crops", PANEL, labels=False),
            report.images[0],
        )
        for setting, report in found
    }
    height = max(panel.height for panel, _ in panels.values())
    width = max(panel.width for panel, _ in panels.values())
    big, mid, small = (ImageFont.load_default(size) for size in (24, 16, 14))
    left, top, line = 170, 104, height + 30
    page = Image.new(
        "RGB",
        (
            max(left + len(retentions) * (width + GAP) + GAP, 860),
            top + len(methods) * line + GAP,
        ),
        PAGE,
    )
    draw = ImageDraw.Draw(page)
    draw.text((20, 30), shown.title, INK, font=big, anchor="lm")
    key = "clear: kept - orange: merged, fainter the less it counts - dark: dropped"
    if any(report.images[0].inside for _, report in found):
        key += " - blue: between layers"
    draw.text((20, 60), f"asked: {shown.question}   {key}", FAINT, font=mid, anchor="lm")
    for column, retention in enumerate(retentions):
        text = share_label(retention)
        draw.text((left + column * (width + GAP), 90), text, FAINT, font=mid, anchor="lm")
    for row, method in enumerate(methods):
        y = top + row * line
        draw.text((20, y + height // 2), method, INK, font=mid, anchor="lm")
        for column, retention in enumerate(retentions):
            if (method, retention) not in panels:
                continue
            panel, image = panels[method, retention]
            x = left + column * (width + GAP)
            page.paste(panel, (x, y))
            share = (
                image.average_retention
            )  # over layers, where tokens are dropped inside the model
            kept = round(share * image.patches_before)
            count = f"{kept} of {image.patches_before} ({share:.1%})"
            draw.text((x, y + height + 12), count, FAINT, font=small, anchor="lm")
    return page


def index(demo: Demo, pictures: Sequence[tuple[Exhibit, Path, list[Path]]], folder: Path) -> Path:
    """Write `index.html`: the table, and all pictures by relative links."""
    header, lines = cells(demo)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    parts = [
        "<!doctype html><meta charset='utf-8'><title>vtc demo</title>",
        "<meta name='viewport' content='width=device-width'>",
        f"<style>{STYLE}</style>",
        "<h1>Visual-token compression on the reference VLM</h1>",
        f"<div class='wide'><table><tr>{head}</tr>\n{body}</table></div>",
        "".join(f"<p class='note'>{html.escape(text)}</p>" for text in caption(demo)),
    ]
    for shown, sheet, singles in pictures:
        parts.append(f"<h2>{html.escape(shown.title)}</h2>")
        for path in (sheet, *singles):
            link = html.escape(path.relative_to(folder).as_posix())
            parts.append(
                f"<a href='{link}'><img src='{link}' alt='{path.stem}' loading='lazy'></a>"
            )
    path = folder / "index.html"
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c202c; background: #fafafc;
       max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #dfe2ea;
         white-space: nowrap }
th:first-child, td:first-child { text-align: left }
.wide { overflow-x: auto } .note { color: #686e7e; margin: .3rem 0; font-size: 13px }
img { max-width: 100%; border: 1px solid #dfe2ea; border-radius: 6px; margin: .5rem 0 }
"""
