"""Run the notebooks of the documentation from top to bottom, and keep what their cells print and draw.

    python tools/notebooks.py [NAME ...]

The committed outputs are what readers see on the site. Times and machines are left out of the files, so
that a run that gives the same changes nothing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
#: seconds a cell may take on a busy machine
LIMIT = 600


def run(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run all cells in a new kernel; an error in a cell is raised with its traceback."""
    NotebookClient(
        notebook,
        timeout=LIMIT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    ).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main() -> None:
    paths = [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        began = time.monotonic()
        print(f"{path.name} ...", end=" ", flush=True)
        notebook = run(nbformat.read(path, as_version=4), FOLDER)
        nbformat.write(notebook, path)
        print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
