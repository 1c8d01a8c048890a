"""`python -m vtc.eval COMMAND`; the commands are the modules of `eval/commands/`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence

from vtc import __version__
from vtc.commands._status import run_command
from vtc.eval import commands


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="python -m vtc.eval",
        description="Measure what visual-token compression costs and saves.",
    )
    parser.add_argument("--version", action="version", version=f"vtc {__version__}")
    found = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in pkgutil.iter_modules(commands.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{commands.__name__}.{module.name}").add(found)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    return run_command(build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
