"""`python -m vtc.eval COMMAND`, one command a file, each with `add(subparsers)`.

They import torch and transformers late, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vtc import __version__
from vtc.commands.eval import accuracy, efficiency, generation, report, summary
from vtc.commands.parser import Parser
from vtc.commands.status import run_command


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    parser = Parser(
        prog="python -m vtc.eval",
        description="Measure what visual-token compression costs and saves.",
    )
    parser.add_argument("--version", action="version", version=f"vtc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (accuracy, efficiency, generation, report, summary):
        module.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    return run_command(build_parser(), argv)
