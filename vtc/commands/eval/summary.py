"""`python -m vtc.eval summary RUN`: the figures of an accuracy run, from the answers on disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vtc.eval.common.arguments import add_imports


def add(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "summary",
        help="sum up an accuracy run again, also one that was stopped",
        description="Write summary.json, summary.csv and summary.md of a run, and print the table.",
    )
    parser.add_argument("folder", metavar="RUN", type=Path)
    add_imports(parser)
    parser.add_argument("--markdown", action="store_true", help="print Markdown, with all columns")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write and print."""
    from vtc.commands.eval.accuracy import print_summary
    from vtc.eval.accuracy import summary

    found = summary.write(args.folder)
    if args.markdown:
        print(summary.markdown(found), end="")
    else:
        print_summary(found)
