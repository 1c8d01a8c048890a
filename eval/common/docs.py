"""Tables as Markdown, and where commands write them into the docs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vtc.errors import VTCError


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Cells as a table whose first two columns are words and all others figures."""
    rows = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name: begin -->` and `<!-- name: end -->` in a file.

    Raises:
        VTCError: the file does not hold both lines once.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    whole = path.read_text(encoding="utf-8") if path.is_file() else ""
    if whole.count(begin) != 1 or whole.count(end) != 1:
        raise VTCError(f"markdown: {str(path)!r} needs one line {begin!r} and one {end!r}")
    before, rest = whole.split(begin)
    path.write_text(f"{before}{begin}\n{text}{end}{rest.split(end)[1]}", encoding="utf-8")
