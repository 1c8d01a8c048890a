"""Install a wheel into an empty environment and use it from another folder, as a user would.

    python tools/wheel_check.py dist/vtc_vlm-0.1.0-py3-none-any.whl [--released]

Every command's output is looked at, and one that fails ends the check. With `--released` what has to
be true of a release is looked at first: versions agree, the changes are written down, and the metadata
names a real repository.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def released(wheel: Path) -> None:
    """Stop with a message where this is no release yet."""
    with zipfile.ZipFile(wheel) as files:
        name = next(name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        facts = files.read(name).decode("utf-8")
    found = re.search(r"^Version: (.+)$", facts, re.MULTILINE)
    version = found[1] if found else "none"
    if not re.search(r"^(Home-page: |Project-URL: \w+, )https://", facts, re.MULTILINE):
        sys.exit("release: URL in setup.py has no public address of the repository")
    for file, line in (
        ("CHANGELOG.md", rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"),
        ("CITATION.cff", rf"^version: {re.escape(version)}$"),
        ("CITATION.cff", r"^date-released: \d{4}-\d\d-\d\d$"),
    ):
        if not re.search(line, (ROOT / file).read_text("utf-8"), re.MULTILINE):
            sys.exit(f"release: {file} has no line {line}")


def main() -> None:
    wheel = Path(sys.argv[1]).resolve()
    if "--released" in sys.argv:
        released(wheel)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        venv.create(place / "venv", with_pip=True)
        scripts = place / "venv" / ("Scripts" if os.name == "nt" else "bin")
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VTC_"))}

        def run(*command: str) -> str:
            print("$", *command, flush=True)
            done = subprocess.run(
                [str(scripts / command[0]), *command[1:]],
                cwd=place,
                env={**outside, "HF_HUB_OFFLINE": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
            if done.returncode:
                sys.exit(f"failed with status {done.returncode}:\n{done.stdout}")
            return done.stdout

        pins = str(ROOT / "constraints.txt")
        run("python", "-m", "pip", "install", "-c", pins, f"vtc-vlm[demo] @ {wheel.as_uri()}")
        at = run("python", "-c", "import vtc; print(vtc.__file__)").strip()
        assert Path(at).resolve().is_relative_to(place.resolve()), f"vtc is taken from {at}"
        version = run("vtc", "--version").split()[1]
        assert f"-{version}-" in wheel.name, f"{wheel.name} says it is {version}"
        assert "globalcom2" in run("vtc", "methods")
        (row,) = json.loads(run("vtc", "run", "--scene", "4", "--json"))["results"]
        assert row["answer"] == row["right_answer"] == "owl", row
        scene = ["--scene", "4", "--method", "globalcom2", "--output", "kept.png"]
        run("vtc", "show", *scene)
        assert (place / "kept.png").stat().st_size > 1000
        few = ["--scenes", "2", "--rounds", "1", "--methods", "uniform", "globalcom2"]
        print(run("vtc", "demo", *few))
        assert (place / "demo_output" / "index.html").is_file()
        print(f"{wheel.name} installs into an empty environment and runs the demo there")


if __name__ == "__main__":
    main()
