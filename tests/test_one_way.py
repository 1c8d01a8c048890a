"""Imports run one way: from a floor of the package to the same or a lower one, never up."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path

SOURCE = Path(__file__).parents[1]  # `vtc` in it is the package as it installs

#: floors from the lowest; a module is on that of its longest prefix here
FLOORS: tuple[tuple[str, ...], ...] = (
    ("vtc.errors", "vtc.checks"),
    ("vtc.kernels",),
    ("vtc.functional.anyres",),  # how tiles are cut, strung together and laid out
    ("vtc.packing",),
    ("vtc.functional",),
    ("vtc.tokens", "vtc.selection", "vtc.batch", "vtc.batch_tables", "vtc.layers"),
    ("vtc.report", "vtc.rgb", "vtc.panels", "vtc.sheet", "vtc.pictures"),
    ("vtc.doors", "vtc.openings", "vtc.published", "vtc.registry"),
    ("vtc.methods",),
    ("vtc.config", "vtc.several"),
    ("vtc.plugins", "vtc.plugins.model"),
    ("vtc.plugins.hf", "vtc.plugins.vllm"),
    ("vtc.discrete",),  # a branch of its own, see below
    ("vtc", "vtc.api", "vtc.plugins.backends"),
    ("vtc.eval",),
    ("vtc.commands", "vtc.cli", "vtc.__main__"),
)
#: what `vtc.discrete` may import besides itself
BRANCH = ("vtc.errors", "vtc.kernels", "vtc.doors", "vtc.registry")

#: upward imports for type checkers alone, which cost nothing when the package runs
TYPING = {
    ("vtc", "vtc.eval.tune"),  # `vtc.tune`, which is imported when it is asked for
    ("vtc.batch", "vtc.methods.base"),  # the methods of a batch
    ("vtc.registry", "vtc.methods.base"),  # what it holds
    ("vtc.plugins.hf.apply", "vtc.plugins.backends"),  # what a plug-in may be given
}
#: TEMPORARY, upward imports that are on their way out; a line here is a debt, not a permission
LEFT: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Import:
    """One import: of `target`, in `module`, and whether it is for type checkers alone."""

    module: str
    target: str
    typing: bool


def modules() -> dict[str, Path]:
    """Every module of the package, by name."""
    found = {}
    for folder, _, files in os.walk(SOURCE / "vtc", followlinks=True):
        for file in files:
            if file.endswith(".py"):
                parts = Path(folder, file).relative_to(SOURCE).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = Path(
                    folder, file
                )
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[Import]:
    """The imports of a module from the package, also late ones."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            inner = [f"{base}.{alias.name}" for alias in node.names]
            targets = [each if each in known else base for each in inner]
        else:
            continue
        for target in dict.fromkeys(targets):
            if target.partition(".")[0] == "vtc":
                yield Import(name, target, node in typing)


def floor(module: str) -> int:
    """The floor that a module is on."""
    prefix = {name: level for level, names in enumerate(FLOORS) for name in names}
    while module not in prefix:
        module = module.rpartition(".")[0]
    return prefix[module]


def every() -> list[Import]:
    known = modules()
    return [each for name, path in known.items() for each in imports(name, path, known)]


def test_imports_run_one_way() -> None:
    up = {each for each in every() if floor(each.target) > floor(each.module)}
    real = {(each.module, each.target) for each in up if not each.typing}
    assert real == LEFT, said(real ^ LEFT)
    typing = {(each.module, each.target) for each in up if each.typing}
    assert typing == TYPING, said(typing ^ TYPING)


def test_the_branch_of_discrete_tokenizers_stands_alone() -> None:
    outside = {
        (each.module, each.target)
        for each in every()
        if each.module.startswith("vtc.discrete") and not each.target.startswith("vtc.discrete")
    }
    wrong = {(a, b) for a, b in outside if not b.startswith(BRANCH)}
    assert not wrong, said(wrong)


def test_every_module_has_a_floor_of_its_own() -> None:
    """None is on that of `vtc` because nobody thought of it."""
    stray = {module for module in modules() if floor(module) == floor("vtc")}
    assert stray <= {*FLOORS[floor("vtc")]}, "name them in FLOORS"


def said(found: set[tuple[str, str]]) -> str:
    return "\n".join(f"{module} imports {target}" for module, target in sorted(found))
