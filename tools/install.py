"""Make a virtual environment and install this project with some extras, never silent for long.

    python tools/install.py .venv demo

It says beforehand how much is downloaded, shows what pip fetches, and says in between how far it is. It
needs nothing but Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST = (3, 10)
EVERY = 15.0  # seconds between two signs of life
#: what is downloaded into an empty environment, and why
SIZES = {
    "demo": "the demo needs PyTorch, transformers and scikit-image",
    "test": "the tests need PyTorch, transformers and some sixty packages more",
    "docs": "the documentation needs MkDocs and its plug-ins, 40 MB",
}
PYTORCH = (
    "about 0.3 GB; on Linux about 3 GB, because CUDA comes with PyTorch there "
    "(PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu leaves it out)"
)
#: lines of pip that tell a user nothing
DULL = (
    "Requirement already",
    "Looking in",
    "Using cached",
    "Collecting",
    "  Preparing",
    "  Getting",
)


def say(text: str) -> None:
    print(text, flush=True)


def pip(python: Path, arguments: list[str], folder: Path) -> int:
    """Run pip; its lines, and a sign of life where it has none."""
    process = subprocess.Popen(
        [python, "-m", "pip", "install", "--disable-pip-version-check", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    last = [time.monotonic()]
    began = last[0]

    def watch() -> None:
        while process.poll() is None:
            time.sleep(0.5)
            if time.monotonic() - last[0] >= EVERY:
                last[0] = time.monotonic()
                minutes, seconds = divmod(int(last[0] - began), 60)
                say(
                    f"  still installing, {minutes}:{seconds:02d}, {size(folder) / 1e6:.0f} MB so far"
                )

    threading.Thread(target=watch, daemon=True).start()
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() and not line.startswith(DULL):
            last[0] = time.monotonic()
            shown = line.rstrip()
            say("  " + (shown if len(shown) <= 150 else f"{shown[:140]} ..."))
    return process.wait()


def size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:  # pip has just moved it
                pass
    return total


def main() -> int:
    if len(sys.argv) < 3:
        say(__doc__ or "")
        return 2
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        say(f"Python 3.10 or newer is needed, this is {found}; try: make PYTHON=python3.12")
        return 1
    folder, extras = Path(sys.argv[1]), sys.argv[2].split(",")
    say(f"installing into {folder}: " + "; ".join(SIZES.get(extra, extra) for extra in extras))
    if extras == ["docs"]:  # the site is built from the text of the modules, and runs none
        needed = ["-r", str(ROOT / "docs" / "requirements.txt")]
    else:
        say(f"an empty environment downloads {PYTORCH}")
        needed = ["-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}[{','.join(extras)}]"]
    bin_folder = folder / ("Scripts" if os.name == "nt" else "bin")
    python = bin_folder / ("python.exe" if os.name == "nt" else "python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    return pip(python, needed, folder)


if __name__ == "__main__":
    sys.exit(main())
