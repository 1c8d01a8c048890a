"""The `vtc` command: parser, error handling; the sub-commands are in `vtc/commands/`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from vtc import __version__
from vtc.commands import demo, methods, run, show
from vtc.errors import VTCError

EPILOG = """\
examples:
  vtc methods                                       what there is
  vtc methods globalcom2                            its options
  vtc demo --output demo_output                     the embedded reference model
  vtc run --model reference --image page.png --prompt "how many circles are there?" \\
          --method globalcom2 --retention 0.25 --compare
  vtc show --image photo.jpg --method globalcom2 --retention 0.25 --output kept.png
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="vtc",
        description="Visual-token compression for vision-language models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vtc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (methods, run, show, demo):
        module.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 for an error, 2 for wrong usage."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed its help or its error
        return int(stop.code or 0)
    try:
        args.run(args)
        return 0
    except VTCError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "vtc":
            raise
        message = f"the package {error.name!r} is missing: pip install 'vtc-vlm[all]'"
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # an output folder that cannot be written, a full disk
        name = f": {error.filename}" if error.filename else ""
        message = f"{error.strerror or error}{name}"
    except KeyboardInterrupt:
        print("vtc: interrupted", file=sys.stderr)
        return 130
    print(f"vtc: error: {' '.join(message.split())}", file=sys.stderr)
    return 1
