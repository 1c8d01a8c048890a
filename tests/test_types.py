"""Types arrive at a user: with the wheel, and with an editable install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import vtc

ROOT = Path(__file__).parents[1]
#: what goes into a package
PARTS = (
    "vtc",
    "plugins",
    "kernels",
    "eval",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "docs/requirements.txt",
)
USER = """
import vtc
from vtc.plugins.hf.adapters.base import Adapter

with vtc.compress(object(), "random", retention=0.25) as run:
    reveal_type(run)
reveal_type(run.reports[-1])
reveal_type(run.reports[-1].images[0].patches_after)
with run.call() as call:
    reveal_type(call.report)
reveal_type(vtc.create_method("random"))
reveal_type(vtc.CompressionConfig().retention)
reveal_type(vtc.model_defaults)
reveal_type(Adapter().fuses)
vtc.create_methods("random")
class Own(vtc.Method):
    name = 3
"""
REVEALED = [
    "vtc.plugins.backends.Handle",
    "vtc.report.Report",
    "int",
    "vtc.report.Report",
    "vtc.methods.base.Method",
    "float | list[float] | dict[str, float] | None",
    "def (model: Any) -> dict[str, dict[str, Any]]",
    "str",
]
BUILD = """
import sys, setuptools.build_meta as backend
folder = sys.argv[1]
backend.build_wheel(f"{folder}/wheel")
backend.build_editable(f"{folder}/editable")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an editable one, made of a copy: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, symlinks=True, ignore=ignore)
        else:
            (source / part).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / part, source / part)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_a_user_sees_types(built: Path, tmp_path: Path, kind: str) -> None:
    """mypy in an environment that holds nothing but `vtc`, on a file that uses it."""
    venv.create(tmp_path / "env")
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (wheel,) = (built / kind).glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (tmp_path / "user.py").write_text(USER)
    found = mypy(tmp_path, "--python-executable", str(tmp_path / "env" / "bin" / "python"))
    revealed = re.findall(r'Revealed type is "(.*)"', found)
    assert revealed[: len(REVEALED)] == REVEALED, found
    assert 'Module has no attribute "create_methods"' in found, "a misspelt name is an error"
    assert 'Incompatible types in assignment (expression has type "int"' in found


def mypy(folder: Path, *arguments: str) -> str:
    """What mypy says about user.py, with a cache that later tests share."""
    cache = folder.parent / "mypy_cache"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(cache), *arguments, "user.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "", "MYPYPATH": ""},
    )
    return done.stdout + done.stderr


def test_a_wheel_holds_what_an_editable_install_shows(built: Path) -> None:
    """Every file of the four rooms, under the same name."""
    (wheel,) = (built / "wheel").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    shown = {
        str(Path(folder, file).relative_to(ROOT))
        for folder, _, files in os.walk(ROOT / "vtc", followlinks=True)
        for file in files
        if file.endswith(".py")
    }
    assert packed == shown


def test_a_checkout_without_links_has_the_same_packages(tmp_path: Path) -> None:
    """Where git cannot make links, the folders are mapped one by one."""
    code = "import setuptools; from distutils.core import run_setup as r;"
    code += "print(sorted(r('setup.py', stop_after='init').packages))"
    ignore = shutil.ignore_patterns("__pycache__", "checkpoint")
    for part in PARTS:
        if not (ROOT / part).is_dir():
            (tmp_path / part).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / part, tmp_path / part)
        else:
            shutil.copytree(ROOT / part, tmp_path / part, symlinks=True, ignore=ignore)
    for room in ("plugins", "kernels", "eval"):
        (tmp_path / "vtc" / room).unlink()
    found = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
        ).stdout
        for folder in (ROOT, tmp_path)
    }
    assert len(found) == 1


def test_type_checkers_and_python_see_the_same_names() -> None:
    """The imports for type checkers are those of the lazy table."""
    text = Path(vtc.__file__).read_text()
    lines = re.findall(r"^    from (\S+) import (\S+) as (\S+)$", text, re.MULTILINE)
    assert all(name == public for _, name, public in lines)
    assert {name: module for module, name, _ in lines} == vtc._EXPORTS
