"""Where the commands write: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from vtc.commands.progress import Bar

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


def said(answer: str) -> str:
    """An answer as people read it: one without a word is named."""
    return answer if answer.strip() else "(empty answer)"


@contextmanager
def progress(disable: bool = False) -> Iterator[Bar]:
    """What is going on, with the time left: a bar on a terminal, a line now and then elsewhere.

    On stderr; nothing with `disable`.
    """
    from vtc.commands import progress as bars

    if disable:
        yield bars.Bar()
    elif sys.stderr.isatty():
        yield from bars.on_a_terminal(stderr())
    else:
        yield from bars.in_a_log(sys.stderr)


@contextmanager
def waiting(text: str, disable: bool = False) -> Iterator[None]:
    """Progress of one thing that takes its time, without steps."""
    with progress(disable) as bar:
        bar.add_task(text)
        yield
