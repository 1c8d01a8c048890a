"""The `vtc` command; its sub-commands are in `vtc/commands/`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vtc import __version__
from vtc.commands import demo, doctor, methods, run, show, train_scorer, tune
from vtc.commands.parser import Parser
from vtc.commands.status import run_command

EPILOG = """\
examples:
  vtc methods                                       what there is
  vtc methods globalcom2                            its options
  vtc demo --output demo_output                     the embedded reference model
  vtc run --model reference --image page.png --prompt "how many circles are there?" \\
          --method globalcom2 --retention 0.25 --compare
  vtc show --image photo.jpg --method globalcom2 --retention 0.25 --output kept.png
  vtc tune --model reference --data questions.jsonl --target 0.95 --output vtc.yaml
                                                    how few tokens your questions need, with a proof
  vtc doctor --model llava-hf/llava-1.5-7b-hf       whether compression is right on a model, here
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    parser = Parser(
        prog="vtc",
        description="Visual-token compression for vision-language models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vtc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (methods, run, show, tune, train_scorer, demo, doctor):
        module.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 for an error, 2 for wrong usage."""
    return run_command(build_parser(), argv)
