"""docs/methods.md names every method, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from vtc.registry import compared_methods, method_class

TEXT = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()


def rows(heading: str) -> dict[str, str]:
    """Name -> line of the table under a heading."""
    part = TEXT.split(f"## {heading}")[1].split("\n## ")[0]
    return {m[1]: m[0] for m in re.finditer(r"^\| `(\w+)`.*$", part, re.MULTILINE)}


def test_every_method_is_in_the_table() -> None:
    assert set(rows("What needs what")) == set(compared_methods())


def test_papers_are_those_of_the_classes() -> None:
    papers = rows("Papers, code and licences")
    published = {name for name in compared_methods() if method_class(name).paper}
    assert set(papers) == published
    for name, line in papers.items():
        number = re.search(r"\d{4}\.\d{5}", method_class(name).paper)
        assert number is None or number[0] in line, name
