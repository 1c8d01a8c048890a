"""`vtc demo`: the main job on the embedded reference VLM."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.commands.console import print_json, progress, stdout
from vtc.commands.outputs import check_writable
from vtc.eval.common import settings
from vtc.eval.common.arguments import add_imports, positive
from vtc.eval.common.loading import load

if TYPE_CHECKING:
    from vtc.eval.common.settings import Setting
    from vtc.eval.demo.run import Row

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
#: columns that a cell may need
WIDEST = {"accuracy": 12, "patch tokens": 10, "prefill time": 16}


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
    check_writable("output", args.output, folder=True)

    began = time.monotonic()
    with progress(disable=args.json) as bar:
        task = bar.add_task("loading the reference model")

        from vtc.eval.demo import pictures as painted
        from vtc.eval.demo import run as demo
        from vtc.registry import compared_methods

        chosen = demo.settings(args.methods or compared_methods(every=False), args.retention)
        folder = Path(args.output)
        folder.mkdir(parents=True, exist_ok=True)
        shown = 0 if args.no_pictures else len(painted.exhibits())
        ask = demo.runner(load("reference", "cpu"), chosen, args.scenes, args.questions)
        lines = Lines(chosen)
        total = demo.steps(chosen, args.scenes, args.rounds) + shown * (len(chosen) - 1)
        bar.update(task, total=total, description="asking")

        def step() -> None:
            bar.advance(task)

        def show(row: Row) -> None:
            if not args.json:
                bar.print(lines.row(row))

        if not args.json:
            bar.print(lines.header())
        result = demo.measure(ask, chosen, args.rounds, step, show)
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
    console = stdout()
    for text in demo.caption(result):
        console.print(text, style="dim", markup=False, highlight=False)
    console.print(
        f"\n{len(files)} pictures and the table: {page}   ({time.monotonic() - began:.0f} s)",
        markup=False,
        highlight=False,
    )


class Lines:
    """The table as lines of text, so that a row can be shown before the others are there."""

    def __init__(self, chosen: Sequence[Setting]) -> None:
        from vtc.eval.demo.run import HEADER

        wide = stdout().width >= 108  # room for the columns by group of questions
        self.shown = [i for i, name in enumerate(HEADER) if wide or name not in SHORT]
        self.names = [SHORT.get(name, name) for name in HEADER]
        self.widths = [
            max(len(self.names[i]), WIDEST.get(name, 0)) for i, name in enumerate(HEADER)
        ]
        self.widths[0] = max(len(setting.method) for setting in chosen)
        self.method = ""

    def header(self) -> Any:
        """The names of the columns, over a line."""
        from rich.text import Text

        names = self._line(self.names)
        return Text.assemble((names, "bold"), "\n", ("-" * len(names), "dim"))

    def row(self, row: Row) -> Any:
        """A row; the name of its method only where it is another than before."""
        from rich.text import Text

        from vtc.eval.demo.run import line

        cells = line(row)
        again = cells[0] == self.method
        self.method = cells[0]
        return Text(self._line(["", *cells[1:]] if again else cells))

    def _line(self, cells: Sequence[str]) -> str:
        padded = [
            cells[i].rjust(self.widths[i]) if i else cells[i].ljust(self.widths[i])
            for i in self.shown
        ]
        return "  ".join(padded)
