"""The versions that are promised are the versions that are tested, wherever they are named."""

from __future__ import annotations

import re
from pathlib import Path

from vtc.commands import doctor
from vtc.plugins.hf import TESTED, version_note

ROOT = Path(__file__).parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def one(pattern: str, name: str) -> tuple[str, ...]:
    """The groups of the one place in a file that fits."""
    (match,) = re.finditer(pattern, text(name), re.MULTILINE)
    return match.groups()


def minor(version: str) -> tuple[int, int]:
    major, number = version.split(".")[:2]
    return int(major), int(number)


def test_setup_allows_what_ci_runs() -> None:
    """From the oldest version, which a target of its own tests, up to the last minor version."""
    lowest, bound = one(r'"transformers>=([\d.]+),<([\d.]+)"', "setup.py")
    (oldest,) = one(r"^OLDEST := (.+)$", "Makefile")
    assert minor(oldest) == minor(lowest) == minor(TESTED[0])
    major, after = minor(bound)
    assert minor(TESTED[1]) == (major, after - 1)
    runs = text(".ci/run").split("set -euo pipefail")[1]
    assert re.findall(r"^make (\S+)", runs, re.MULTILINE) == ["test", "test-oldest", "test-newest"]


def test_the_pinned_versions_are_among_the_tested() -> None:
    """Python 3.10 has a line of its own, with the last transformers that can be installed on it."""
    found = re.findall(r"^(\w+)==([\d.]+)", text("constraints.txt"), re.MULTILINE)
    assert [version_note(pin) for name, pin in found if name == "transformers"] == [None, None]
    pins = dict(found)
    assert doctor.TESTED == {
        name: ".".join(pins[name].split(".")[:2]) for name in ("torch", "triton")
    }


def test_the_readme_says_the_same() -> None:
    first, last, pinned, oldest = one(
        r"transformers ([\d.]+) to ([\d.]+) \(tested: ([\d.]+) whole, ([\d.]+) and the newest",
        "README.md",
    )
    assert (first, last) == TESTED
    assert f"transformers=={pinned};" in text("constraints.txt")
    assert oldest == one(r"^OLDEST := (.+)$", "Makefile")[0]
