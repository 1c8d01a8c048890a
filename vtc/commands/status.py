"""From a command line to an exit status: every expected failure is one line on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from vtc import doors
from vtc.errors import VTCError

#: the extra of setup.py that brings a package, by the name that is imported; others come with "all"
EXTRAS = {
    "matplotlib": "demo",
    "skimage": "demo",
    "sklearn": "eval",
    "scipy": "eval",
    "jinja2": "eval",
    "datasets": "suites",
    "accelerate": "accelerate",
    "triton": "kernels",
}


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse `argv`, import what `--import` names, and call `args.run(args)`.

    Returns:
        0, 1 for an error, 2 for wrong usage, 130 when interrupted.
    """
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed its help or its error
        return int(stop.code or 0)
    try:
        doors.import_all("--import", getattr(args, "imports", ()))
        args.run(args)
        return 0
    except SystemExit as stop:  # what only the command itself can tell is wrong with its arguments
        return int(stop.code or 0)
    except VTCError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        package = (error.name or "vtc").partition(".")[0]
        if package == "vtc":
            raise
        extra = EXTRAS.get(package, "all")
        message = (
            f"the package {package!r} is missing: pip install 'vtc-vlm[{extra}]', or in a checkout "
            f"'.[{extra}]'"
        )
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
