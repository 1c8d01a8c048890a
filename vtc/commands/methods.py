"""`vtc methods`: what methods there are, and the options of one."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from typing import TYPE_CHECKING, Any

from vtc.commands.console import print_json, stdout
from vtc.errors import VTCError
from vtc.eval.common.arguments import add_imports
from vtc.registry import list_methods, method_class, where_from

if TYPE_CHECKING:
    from vtc.methods.base import Method


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
        "stage": cls.stage,
        "signals": _signals(cls),
        "adaptive": cls.adaptive,
        "paper": cls.paper,
        "text": " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()),
        "options": options,
    }


def _signals(cls: type[Method]) -> list[str]:
    """What the method asks a model for by default; what it says of itself where it needs options."""
    try:
        requests = cls().requests()
    except (VTCError, TypeError):
        return list(cls.__dict__.get("signals", ()))
    return list(dict.fromkeys(request.kind for request in requests.values()))


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
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("method", "from", "stage", "signals", "adaptive", "paper", "what it does"):
        table.add_column(name, overflow="fold", no_wrap=name in ("method", "paper"))
    for row in rows:
        table.add_row(
            row["name"],
            row["from"],
            row["stage"],
            ", ".join(row["signals"]) or "-",
            "yes" if row["adaptive"] else "no",
            row["paper"] or "-",
            row["text"],
        )
    console = stdout()
    console.print(table)
    console.print("\n[dim]`vtc methods NAME` lists the options of a method[/dim]")


def _print_one(row: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = stdout()
    console.print(f"[bold]{row['name']}[/bold]: {escape(row['text'])}")
    facts = [
        f"from: {row['from']}",
        f"stage: {row['stage']}",
        f"signals: {', '.join(row['signals']) or 'none'}",
        "has a count of its own" if row["adaptive"] else "",
        f"paper: {row['paper']}" if row["paper"] else "",
    ]
    console.print(f"[dim]{' | '.join(fact for fact in facts if fact)}[/dim]\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("option", "default", "meaning"):
        table.add_column(name, no_wrap=name != "meaning")
    for option in row["options"]:
        table.add_row(option["name"], escape(repr(option["default"])), escape(option["text"]))
    console.print(table)
