"""docs/stability.md lists exactly the public names that there are."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import vtc
from vtc import config, doors
from vtc.cli import build_parser
from vtc.commands.eval import build_parser as build_eval_parser
from vtc.eval import suites
from vtc.packing import Packing
from vtc.report import FORMAT, ImageReport

PAGE = (Path(__file__).parents[1] / "docs" / "stability.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text under a heading."""
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> dict[str, str]:
    """First to second cell of the table under a heading."""
    found = re.findall(r"^\| (.*?) \| (.*?) ?\|$", section(title), re.MULTILINE)
    return dict(found[2:])


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def in_keys(title: str) -> list[str]:
    return [name for cell in rows(title) for name in quoted(cell)]


def in_values(title: str) -> list[str]:
    return [name for cell in rows(title).values() for name in quoted(cell)]


def same(page: list[str], code: list[str]) -> None:
    assert sorted(page) == sorted(code)


def test_names_of_vtc() -> None:
    same(in_keys("Names of `vtc`"), vtc.__all__)
    text = " ".join(section("Names of `vtc`").split())
    told = quoted(text.partition("`vtc.eval.suites` has")[2].partition(". `vtc.discrete`")[0])
    same(told, suites.__all__)


def test_the_interface_of_methods() -> None:
    public = [name for name in vars(vtc.Method) if not name.startswith("_")]
    same(in_values("What a method may define and use"), public)


def test_groups_of_entry_points() -> None:
    same(in_keys("Parts of your own"), [doors.METHODS, doors.SUITES, doors.PLUGINS])


def test_settings() -> None:
    keys = quoted(section("Settings").partition("The keys of")[2].partition(".")[0])
    same(keys, list(config.VARIABLES.values()))
    same(in_keys("Settings"), [*config.VARIABLES, *config.OTHER_VARIABLES])


def options(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, list[str]]]:
    """Every command with its options."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each, inner in action.choices.items():
                yield from options(inner, f"{name} {each}")
            return
    flags = [flag for action in parser._actions for flag in action.option_strings]
    yield name, sorted(flag for flag in flags if flag.startswith("--") and flag != "--help")


def test_commands() -> None:
    there = {
        **dict(options(build_parser(), "vtc")),
        **dict(options(build_eval_parser(), "python -m vtc.eval")),
    }
    told = {quoted(command)[0]: quoted(flags) for command, flags in rows("Commands").items()}
    assert told == there


def test_reports() -> None:
    one = torch.zeros(1, dtype=torch.long)
    report = vtc.Report([ImageReport(Packing((1, 1)), one, one, torch.ones(1))], "none")
    told, plain = rows("Reports as JSON"), report.to_dict(details=False)
    same(quoted(told["a report"]), list(plain))
    same(quoted(told["an image, counts"]), list(plain["images"][0]))
    assert f"`{FORMAT}`" in section("Reports as JSON")


@pytest.mark.parametrize("name", vtc.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(vtc, name) is not None
