"""The notebooks run from top to bottom, and what they show is what they give."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS

ROOT = Path(__file__).parents[2]
NAMES = ("compress_a_model", "compare_methods", "write_a_method", "train_a_tokenizer")


def source(cell: dict) -> str:
    return "".join(cell["source"])


def printed(cell: dict) -> list[str]:
    """Words of a cell's output; figures are masked, since times and the last digits differ."""
    found = []
    for output in cell["outputs"]:
        found.append("".join(output.get("text", "")) or " ".join(sorted(output.get("data", ()))))
    return re.sub(r"[-+]?\d[\d.]*", "#", "\n".join(found)).split()


def cells(name: str) -> list[dict]:
    book = json.loads((DOCS / "notebooks" / f"{name}.ipynb").read_text("utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def test_these_are_all() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in (DOCS / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_was_run_whole_and_names_no_machine(name: str) -> None:
    found = cells(name)
    assert [cell["execution_count"] for cell in found] == [*range(1, len(found) + 1)]
    text = (DOCS / "notebooks" / f"{name}.ipynb").read_text("utf-8")
    assert '"error"' not in text and '"stderr"' not in text
    assert not re.search(r"/(root|home|work|tmp|Users)/", text)
    assert len(text) < 600_000


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_gives_what_it_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sys.modules.pop("notebooks", None)
    import notebooks

    book = nbformat.read(DOCS / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    book = notebooks.run(book, tmp_path)
    again = [cell for cell in book.cells if cell.cell_type == "code"]
    for shown, gives in zip(cells(name), again, strict=True):
        assert printed(shown) == printed(gives), source(shown)
