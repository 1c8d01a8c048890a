"""`vtc methods`: what methods there are, and the options of one."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from typing import TYPE_CHECKING, Any

from vtc.commands.console import print_json, stdout
from vtc.eval.common.arguments import add_imports
from vtc.registry import list_methods, method_class, where_from

if TYPE_CHECKING:
    from vtc.methods.base import Method

#: marks in the texts of options: where a default comes from
MARKS = {
    "code": "as the official code has it",
    "paper": "as the paper has it",
    "ours": "chosen here, where paper and code say nothing or do not hold in general",
}


#: where methods act: a word for tables, and what it means
ACTS = {
    "pictures": "on pictures, before the vision tower sees them",
    "tower": "on tokens of the vision tower, in front of the projector",
    "prompt": "on tokens behind the projector, in front of the language model",
    "layers": "inside the language model: its first layers see every token",
}


def add(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "methods",
        help="list the methods, or the options of one",
        description="List the compression methods; with the name of one, its options.",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="a name or a glob, e.g. 'token*'")
    add_imports(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    names = list_methods(args.pattern)
    if not names:
        method_class(args.pattern)  # raises, and says what there is
    if args.json:
        print_json([describe(name) for name in names])
    elif args.pattern in names:
        _print_one(describe(args.pattern))
    else:
        _print_table([describe(name) for name in names])


def describe(name: str) -> dict[str, Any]:
    """Plain facts of a method."""
    from vtc.commands.needs import needs, signals  # imports torch

    cls = method_class(name)
    texts = _attribute_texts(cls)
    options = [
        {
            "name": field.name,
            "default": _default(field),
            "text": texts.get(field.name, ""),
        }
        for field in dataclasses.fields(cls)
        if field.init
    ]
    return {
        "name": name,
        "from": where_from(name),
        "where": cls.where,
        "acts": acts(cls),
        "cuts": cuts(cls),
        "signals": signals(cls),
        "needs": needs(cls),
        "adaptive": cls.adaptive,
        "paper": cls.paper,
        "text": " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()),
        "options": options,
    }


def acts(cls: type[Method]) -> str:
    """The key of `ACTS` that holds for a method."""
    if cls.where != "boundary":
        return {"pixels": "pictures", "layers": "layers"}[cls.where]
    return "tower" if cls.stage == "vision" else "prompt"


def cuts(cls: type[Method]) -> str:
    """In front of which layers a method inside the language model drops tokens by default, in words;
    empty for the others."""
    layers = getattr(cls, "paper_layers", ())
    if not layers:
        return ""
    named = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
    return f"drops tokens in front of {named} of {cls.paper_depth}"  # type: ignore[attr-defined]


def _default(field: dataclasses.Field[Any]) -> Any:
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    plain = value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))
    return value if plain else repr(value)


def _attribute_texts(cls: type) -> dict[str, str]:
    """The entries of the `Attributes:` sections of a class and its bases, by name."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        doc = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)*)", doc, re.MULTILINE)
        if section is None:
            continue
        name = ""
        for line in inspect.cleandoc("\n" + section.group(1)).splitlines():
            entry = re.match(r"([\w, ]+?):\s+(.*)", line)
            if entry and not line.startswith(" "):
                name = entry.group(1)
                texts[name] = entry.group(2)
            elif name:
                texts[name] += " " + line.strip()
    return {key.strip(): text for names, text in texts.items() for key in names.split(",")}


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    away = any(row["from"] != "vtc" for row in rows)  # methods of other packages or files
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ["method", *["from"] * away, "acts on", "needs", "own count", "what it does"]
    for name in columns:
        table.add_column(name, no_wrap=name == "method", max_width=22 if name == "needs" else None)
    for row in rows:
        count = "yes" if row["adaptive"] else ""
        cells = [
            row["name"],
            *[row["from"]] * away,
            row["acts"],
            ", ".join(row["needs"]) or "nothing",
            count,
            row["text"],
        ]
        table.add_row(*map(escape, cells))
    console = stdout()
    console.print(table)
    _print_key(rows)
    console.print(
        "\nown count: without retention= or tokens= the method decides how many tokens stay.\n"
        "`vtc methods NAME` lists the options of a method, docs/methods.md says which one to take.",
        style="dim",
        markup=False,
        highlight=False,
    )


def _print_one(row: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = stdout()
    console.print(f"[bold]{row['name']}[/bold]: {escape(row['text'])}")
    facts = [
        f"from: {row['from']}",
        f"acts {ACTS[row['acts']]}",
        row["cuts"],
        f"signals: {', '.join(row['signals']) or 'none'}",
        "has a count of its own" if row["adaptive"] else "",
        f"paper: {row['paper']}" if row["paper"] else "",
    ]
    console.print(f"[dim]{' | '.join(fact for fact in facts if fact)}[/dim]")
    _print_key([row])
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("option", "default", "meaning"):
        table.add_column(name, no_wrap=name != "meaning")
    for option in row["options"]:
        table.add_row(option["name"], escape(repr(option["default"])), escape(option["text"]))
    console.print(table)
    texts = " ".join(option["text"] for option in row["options"])
    for mark, meaning in MARKS.items():
        if f"[{mark}" in texts:
            console.print(f"[{mark}] {meaning}", style="dim", markup=False, highlight=False)


def _print_key(rows: list[dict[str, Any]]) -> None:
    """What the words in the table mean, those that are there."""
    from rich.markup import escape

    from vtc.commands.needs import KEY

    found = {need for row in rows for need in row["needs"]}
    meanings = {need: meaning for need, meaning in KEY.items() if need in found}
    if len(rows) > 1:  # of one method it is said in full
        used = {row["acts"] for row in rows}
        meanings = {word: text for word, text in ACTS.items() if word in used} | meanings
    for word, meaning in meanings.items():
        stdout().print(f"[dim]{word}: {escape(meaning)}[/dim]", highlight=False)
