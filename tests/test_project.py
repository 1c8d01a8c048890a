"""What a release says of itself in several places agrees, and CI calls targets that there are."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import vtc
from vtc.commands.status import EXTRAS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").is_file(), reason="an installed package")


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_the_version_stands_in_one_place() -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split()[-1] == vtc.__version__, done.stderr
    assert yaml.safe_load(text("CITATION.cff"))["version"] == vtc.__version__
    assert f"## [{vtc.__version__}]" in text("CHANGELOG.md")


def test_ci_calls_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    called = set()
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        flow = yaml.safe_load(file.read_text("utf-8"))
        for job in flow["jobs"].values():
            for step in job["steps"]:
                command = step.get("run", "")
                which = job.get("strategy", {}).get("matrix", {}).get("which", [""])
                called |= {command.replace("${{ matrix.which }}", name) for name in which}
    called = {command.removeprefix("make ") for command in called if command}
    assert {"test", "test-oldest", "test-newest", "style", "docs", "dist-check"} <= called
    assert called <= targets


def test_ci_runs_the_pythons_that_are_promised() -> None:
    flow = yaml.safe_load(text(".github/workflows/ci.yml"))
    told = re.findall(r"Programming Language :: Python :: (3\.\d+)", text("setup.py"))
    assert flow["jobs"]["test"]["strategy"]["matrix"]["python"] == told
    assert f'python_requires=">={told[0]}"' in text("setup.py")


def test_the_demo_gets_the_fonts_of_its_scenes() -> None:
    """`make demo` installs this extra alone."""
    fonts = text("eval/reference/scene.py")
    (demo,) = re.findall(r'^    "demo": \[(.*?)\]', text("setup.py"), re.MULTILINE)
    assert "matplotlib" not in fonts or "matplotlib" in demo


def test_extras_that_are_named_bring_what_is_said() -> None:
    """In messages and pages; a message for a missing package names one that has it."""
    extras = facts("")["extras_require"]
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    files += [
        file
        for room in ("vtc", "eval", "plugins", "kernels")
        for file in (ROOT / room).rglob("*.py")
    ]
    told = {
        name.strip()
        for file in files
        for names in re.findall(r"(?:vtc-vlm|\"\.)\[([\w, ]+)\]", file.read_text("utf-8"))
        for name in names.split(",")
    }
    assert {"demo", "eval"} <= told <= set(extras)
    called = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
    for package, extra in EXTRAS.items():
        assert any(need.startswith(called.get(package, package)) for need in extras[extra]), package


def test_issue_forms_and_hooks_can_be_read() -> None:
    for file in [
        *(ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"),
        ROOT / ".pre-commit-config.yaml",
    ]:
        assert isinstance(yaml.safe_load(file.read_text("utf-8")), dict), file


def facts(url: str) -> dict[str, object]:
    """What setup.py would say of this package if its repository lay there."""
    code = (
        "import json, re, setuptools, sys; code = open('setup.py').read(); url = sys.argv[1]; "
        "code, found = re.subn('(?m)^URL = .*', f'URL = {url!r}', code); assert found == 1; "
        "keep = 'long_description', 'url', 'project_urls', 'extras_require'; "
        "setuptools.setup = lambda **facts: print(json.dumps({key: facts[key] for key in keep})); "
        "exec(compile(code, 'setup.py', 'exec'), {'__file__': 'setup.py'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, url], cwd=ROOT, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", page)


def test_links_of_the_package_page_are_absolute() -> None:
    """Beside a package page lies no file."""
    told = facts("https://example.org/vtc")
    found = links(told["long_description"])
    assert len(found) > 20
    assert [link for link in found if not link.startswith(("https://", "#"))] == []
    assert "https://example.org/vtc/raw/main/docs/images/kept.png" in found
    assert told["url"] == "https://example.org/vtc"
    assert all(page.startswith(told["url"] + "/") for page in told["project_urls"].values())


def test_without_an_address_there_are_no_links_to_files() -> None:
    told = facts("")
    assert told["url"] is None and told["project_urls"] == {}
    assert [link for link in links(told["long_description"]) if not link.startswith("https:")] == []
    assert "the whole table" in told["long_description"]  # what was a link is still said
    assert "OWNER" not in text("setup.py") + text("README.md") + text("docs/quickstart.md")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text(page)):
        assert (ROOT / link).exists(), link


def wheel_check():
    spec = importlib.util.spec_from_file_location("wheel_check", ROOT / "tools" / "wheel_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "line, version, message",
    [
        ("Author: somebody", vtc.__version__, "no public address"),
        ("Project-URL: Issues, https://example.org/vtc", "9.9.9", "CHANGELOG.md has no line"),
        ("Home-page: https://example.org/vtc", "9.9.9", "CHANGELOG.md has no line"),
    ],
)
def test_what_is_no_release_is_refused(tmp_path, line, version, message) -> None:
    wheel = tmp_path / "vtc_vlm.whl"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr("vtc_vlm.dist-info/METADATA", f"Version: {version}\n{line}\n")
    with pytest.raises(SystemExit, match=message):
        wheel_check().released(wheel)
