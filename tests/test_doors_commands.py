"""A package of somebody else through the commands: `vtc run`, an accuracy run, its page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests import others
from vtc import doors
from vtc.cli import main
from vtc.commands.eval import main as measure

POINTS = {
    "vtc.methods": {"others_norm": "others_parts.method:Norm"},
    "vtc.suites": {"others_colours": "others_parts.suite:Colours"},
}


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """Tables and modules are as before afterwards."""
    with others.forgotten():
        yield


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with an installed package, as `pip install --target` leaves it."""
    sources = {"method": others.method(), "suite": others.suite(), "__init__": ""}
    (tmp_path / "site" / "others_parts").mkdir(parents=True)
    modules = {f"others_parts/{name}": source for name, source in sources.items()}
    return others.install(tmp_path / "site", "others-dist", modules, POINTS)


@pytest.fixture
def image(tmp_path: Path) -> str:
    Image.new("RGB", (128, 128), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def test_an_installed_method_answers(package: Path, tmp_path: Path, image: str) -> None:
    """In a process of its own, which knows nothing of the package but its metadata."""
    argv = ["run", "--image", image, "--prompt", "what colour is it ?", "--json"]
    argv += ["--method", "others_norm", "--retention", "0.25", "--option", "sign=-1"]
    done = subprocess.run(
        [sys.executable, "-m", "vtc", *argv],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert result["report"]["method"] == "others_norm"
    assert result["report"]["settings"]["sign"] == -1
    (shown,) = result["report"]["images"]
    assert shown["patches_after"] == int(0.25 * shown["patches_before"])


def test_an_installed_suite_and_method_are_measured(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stand on the page, with what the method kept painted over the suite's pictures."""
    monkeypatch.syspath_prepend(package)
    doors.entries.cache_clear()
    run, page = tmp_path / "run", tmp_path / "page"
    argv = ["accuracy", "--suite", "others_colours", "--methods", "others_norm,random"]
    argv += ["--retention", "0.5", "--seeds", "1", "--output", str(run), "--quiet"]
    assert measure(argv) == 0
    settings = json.loads((run / "summary.json").read_text())["settings"]
    assert [row["method"] for row in settings] == ["none", "others_norm", "random"]
    assert measure(["report", str(run), "--output", str(page), "--resamples", "100"]) == 0
    text = (page / "report.html").read_text()
    assert "others_norm" in text and "others_colours" in text


def test_a_file_is_imported_for_a_command(
    tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "others_file.py"
    file.write_text(others.method(name="others_file", registered=True))
    assert main(["methods", "others*", "--import", str(file), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["from"]) == ("others_file", str(file))
    assert main(["methods", "others_file"]) == 0
    assert "from: " in capsys.readouterr().out


def test_a_package_that_is_broken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = {"vtc.methods": {"others_norm": "others_broken:Norm"}}
    others.install(tmp_path, "others-dist", {"others_broken": "import nothing_at_all"}, point)
    monkeypatch.syspath_prepend(tmp_path)
    doors.entries.cache_clear()
    with pytest.warns(RuntimeWarning, match="others-dist 1.5"):
        assert main(["methods", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert "pool" in names and "others_norm" not in names
    with pytest.warns(RuntimeWarning, match="others-dist 1.5"):
        assert main(["methods", "others_norm"]) == 1
    assert "No module named 'nothing_at_all'" in capsys.readouterr().err
