"""`vtc demo`: the main job on the embedded reference VLM."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.commands.console import print_json, progress, stdout
from vtc.eval.common import settings
from vtc.eval.common.arguments import add_imports, positive
from vtc.eval.common.loading import load

if TYPE_CHECKING:
    from vtc.eval.demo.run import Demo

DESCRIPTION = """\
Methods and retentions on the small vision-language model that ships with vtc: accuracy on a sample
of test scenes, patch tokens, prefill time against the uncompressed model in the same run, and
pictures of what was kept of a photograph, a document page and a scene.
"""

RETENTIONS = (0.5, 0.25, 0.1)
#: columns by group of questions, with their headers on a terminal
SHORT = {
    "reading": "read",
    "attribute": "attr",
    "exist": "exist",
    "count": "count",
    "position": "where",
}


def add(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "demo",
        help="the methods on the embedded reference model, with a table and pictures",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", default="demo_output", metavar="DIR")
    parser.add_argument("--scenes", type=positive, default=40, help="test scenes, default 40")
    parser.add_argument(
        "--questions", type=positive, default=8, help="most questions about a scene, default 8"
    )
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument(
        "--retention",
        nargs="+",
        type=float,
        default=RETENTIONS,
        metavar="SHARE",
        help="default: 0.5 0.25 0.1",
    )
    parser.add_argument("--rounds", type=positive, default=20, help="timed rounds, default 20")
    add_imports(parser)
    parser.add_argument("--no-pictures", action="store_true", help="only the table")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, paint, write, print."""
    settings.check(args.methods or ["none"], args.retention)

    from vtc.eval.demo import pictures as painted
    from vtc.eval.demo import run as demo
    from vtc.registry import compared_methods

    began = time.monotonic()
    chosen = demo.settings(args.methods or compared_methods(every=False), args.retention)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    shown = 0 if args.no_pictures else len(painted.exhibits())
    ask = demo.runner(load("reference", "cpu"), chosen, args.scenes, args.questions)
    with progress(disable=args.json) as bar:
        total = demo.steps(chosen, args.scenes, args.rounds) + shown * (len(chosen) - 1)
        task = bar.add_task("answering and timing", total=total)

        def step() -> None:
            bar.advance(task)

        result = demo.measure(ask, chosen, args.rounds, step)
        demo.save(result, folder)
        bar.update(task, description="painting")
        pictures = []
        if shown:
            pictures = painted.write(ask, chosen, folder / "pictures", step)
        page = painted.index(result, pictures, folder)
    files = [str(path) for _, sheet, singles in pictures for path in (sheet, *singles)]
    if args.json:
        print_json(
            {**demo.to_dict(result), "output": str(folder), "index": str(page), "pictures": files}
        )
        return
    _print(result)
    console = stdout()
    console.print(
        f"\n{len(files)} pictures and the table: {page}   ({time.monotonic() - began:.0f} s)",
        markup=False,
        highlight=False,
    )


def _print(result: Demo) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from vtc.eval.demo.run import caption, cells

    console = stdout()
    header, lines = cells(result)
    wide = console.width >= 108  # room for the columns by group of questions
    shown = [i for i, name in enumerate(header) if wide or name not in SHORT]
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for index in shown:
        name = header[index]
        table.add_column(
            SHORT.get(name, name), justify="left" if name == "method" else "right", no_wrap=True
        )
    method = ""
    for line in lines:
        if method and line[0] != method:
            table.add_section()
        row = line if line[0] != method else ["", *line[1:]]
        table.add_row(*(escape(row[index]) for index in shown))
        method = line[0]
    console.print(table)
    for text in caption(result):
        console.print(f"[dim]{escape(text)}[/dim]", highlight=False)
