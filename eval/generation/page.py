"""The picture page of the studies: one file that needs nothing else."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from vtc.errors import VTCError
from vtc.eval import pages
from vtc.eval.common.docs import put
from vtc.eval.generation.studies import NAMES
from vtc.eval.generation.studies.base import cell, markdown

LEAD = (
    "Small models trained from scratch on digits and drawn shapes. Figures are means over seeds with "
    "their standard deviation; every difference is taken seed by seed, with a 95 % Student-t "
    "interval widened for the number of comparisons of that figure. Nothing here speaks for models "
    "or images of the published sizes."
)


def write_page(folder: Path) -> Path:
    """Write `index.html` from the results in `folder`.

    Raises:
        VTCError: there are none.
    """
    studies = [_study(folder, name) for name in NAMES if (folder / f"{name}.json").is_file()]
    if not studies:
        raise VTCError(f"output: {folder} has no results; `generation study NAME` makes them")
    text = pages.render(
        "generation.html",
        title="Discrete image tokenizers and their generators, in miniature",
        lead=LEAD,
        sections=[(study["study"], study["title"]) for study in studies],
        studies=studies,
        cell=cell,
    )
    path = folder / "index.html"
    path.write_text(text, encoding="utf-8")
    return path


def write_tables(folder: Path, document: Path) -> None:
    """Put the tables of the results in `folder` between the marks of a document.

    Raises:
        VTCError: the document has no place for one of them.
    """
    for name in NAMES:
        path = folder / f"{name}.json"
        if path.is_file():
            put(document, name, markdown(json.loads(path.read_text(encoding="utf-8"))))


def _study(folder: Path, name: str) -> dict[str, Any]:
    study = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    found = [
        (_uri(folder / f"{file}.png"), caption)
        for file, caption in study["pictures"].items()
        if (folder / f"{file}.png").is_file()
    ]
    return {**study, "figure": _uri(folder / f"{name}.png"), "pictures": found}


def _uri(path: Path) -> str:
    # PNG as it is: pixels of small images must stay sharp
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
