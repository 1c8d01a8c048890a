"""The pieces of code on a page, and whether they are run."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"(?P<why><!-- not run: [^>]+ -->\n+)?```python\n(?P<code>.*?)^```", re.S | re.M)


def code(page: Path) -> str:
    """All Python of a page that is run, in order, on the lines on which it stands there."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for block in BLOCK.finditer(text):
        if block["why"]:
            continue
        first = text.count("\n", 0, block.start("code"))
        for number, line in enumerate(block["code"].splitlines()):
            lines[first + number] = line
    return "\n".join(lines) + "\n"


def run_pages() -> list[str]:
    """Pages whose code begins with the reference model, which everybody has."""
    pages = sorted(DOCS.rglob("*.md"))
    return [page.relative_to(DOCS).as_posix() for page in pages if "load_reference()" in code(page)]
