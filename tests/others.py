"""A small package of somebody else: a method and a suite, as pip lays it into a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vtc import doors, registry
from vtc.eval import suites

METHOD = '''
"""Keeps the patches with the largest feature norm."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import vtc
from vtc.tokens import keep_patches


{decorator}@dataclass
class {cls}(vtc.Method):
    """Keeps the patches with the largest feature norm.

    Attributes:
        sign: 1 for the largest, -1 for the smallest.
    """

    sign: int = 1
    name: ClassVar[str] = "{name}"

    def compress(self, tokens):
        norm = self.sign * tokens.features.float().norm(dim=-1)
        norm = norm.masked_fill(~tokens.valid.to(norm.device), -torch.inf)
        order = norm.flatten().argsort(descending=True, stable=True)
        keep = torch.zeros(norm.numel(), dtype=torch.bool, device=norm.device)
        keep[order[: self.budget(tokens)]] = True
        return keep_patches(tokens, keep.view_as(norm))
'''

SUITE = '''
"""Two pictures in one colour each."""

from dataclasses import dataclass
from typing import ClassVar

from PIL import Image
from vtc.eval.suites import Item, Suite{register}


{decorator}@dataclass
class {cls}(Suite):
    """Asks for the colour of a picture."""

    name: ClassVar[str] = "{name}"

    def items(self):
        return [
            Item(c, (lambda c=c: Image.new("RGB", (128, 128), c),), "what colour is it ?", (c,))
            for c in ("red", "blue")
        ]

    def score(self, item, prediction):
        return float(prediction == item.answers[0])

    def facts(self):
        return {{"source": "{name}", "count": 2}}
'''


@contextmanager
def forgotten() -> Iterator[None]:
    """What is installed, imported and registered inside is forgotten behind it."""
    tables = (registry._METHODS.made, suites._SUITES.made)
    before, modules, asked = [dict(table) for table in tables], set(sys.modules), doors._IMPORTED
    doors._IMPORTED = set(asked)
    doors.entries.cache_clear()
    try:
        yield
    finally:
        for table, old in zip(tables, before, strict=True):
            own = {n: c for n, c in table.items() if c.__module__.startswith("vtc.")}
            table.clear()
            table.update({**own, **old})
        for name in set(sys.modules) - modules:
            if name.startswith("others_"):
                del sys.modules[name]
        doors._IMPORTED = asked
        doors.entries.cache_clear()


def method(cls: str = "Norm", name: str = "others_norm", registered: bool = False) -> str:
    """The source of a module with a method."""
    decorator = "@vtc.register_method\n" if registered else ""
    return METHOD.format(cls=cls, name=name, decorator=decorator)


def suite(cls: str = "Colours", name: str = "others_colours", registered: bool = False) -> str:
    """The source of a module with a suite."""
    decorator, register = ("@register_suite\n", ", register_suite") if registered else ("", "")
    return SUITE.format(cls=cls, name=name, decorator=decorator, register=register)


def install(
    folder: Path, dist: str, modules: Mapping[str, str], points: Mapping[str, Mapping[str, str]]
) -> Path:
    """Lay a package into `folder`, which then goes onto the path.

    Args:
        dist: its name; the version is 1.5.
        modules: sources by the name of the module.
        points: group -> name -> `module:Class`.
    """
    folder.mkdir(exist_ok=True)
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    info = folder / f"{dist.replace('-', '_')}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.5\n")
    lines = []
    for group, named in points.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in named.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder
