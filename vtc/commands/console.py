"""Where the commands write: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

#: columns to assume where no terminal says how wide it is (a pipe, a log file)
PLAIN_WIDTH = 120


def stdout() -> Console:
    """The console of the results."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def stderr() -> Console:
    """The console of progress bars and notes."""
    from rich.console import Console

    return Console(file=sys.stderr, width=None if sys.stderr.isatty() else PLAIN_WIDTH)


def print_json(data: Any) -> None:
    """`data` and nothing else on stdout."""
    print(json.dumps(data, indent=2))


@contextmanager
def progress(disable: bool = False) -> Iterator[Progress]:
    """A progress bar with the time left, on stderr."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr(),
        disable=disable,
    ) as bar:
        yield bar
