"""Run the notebooks of the documentation from top to bottom, and keep what their cells print and draw.

    python tools/notebooks.py [NAME ...]

The committed outputs are what readers see on the site: what cells print and draw, without progress bars
and warnings, which name folders of the machine.
"""

from __future__ import annotations

import base64
import io
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
#: seconds a cell, or the start of a kernel, may take on a busy machine
LIMIT = 600


def run(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run all cells in a new kernel; an error in a cell is raised with its traceback."""
    NotebookClient(
        notebook,
        timeout=LIMIT,
        startup_timeout=LIMIT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            told = [slim(out) for out in cell.outputs if out.get("name") != "stderr"]
            cell.outputs = joined(told)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """What was printed in one go as one output: where a kernel cuts it differs from run to run."""
    found: list[nbformat.NotebookNode] = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream":
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def slim(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same output with one small picture where there are several kinds."""
    kinds = output.get("data", {})
    kinds.pop("image/jpeg", None)
    if "image/png" in kinds:
        picture = Image.open(io.BytesIO(base64.b64decode(kinds["image/png"]))).convert("RGB")
        file = io.BytesIO()
        picture.quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        kinds["image/png"] = base64.b64encode(file.getvalue()).decode("ascii")
    return output


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
