"""Progress of a command: a bar on a terminal, and a line now and then where there is none.

A log never stays without a line for long: a thread writes one also while a step takes minutes, such
as loading a model.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from vtc.commands.console import stdout

if TYPE_CHECKING:
    from rich.console import Console

#: seconds between two lines of a log, and the least between two that say something new
EVERY, NEW = 15.0, 5.0


class Bar:
    """Progress that nobody sees; the others say what happens to their one task.

    Attributes:
        description: what is going on.
        total: steps of the task, None where nobody knows.
        done: steps that are behind.
    """

    def __init__(self) -> None:
        self.description, self.total, self.done = "", None, 0.0  # type: str, float | None, float

    def add_task(self, description: str, total: float | None = None) -> int:
        """Begin; the number returned names the task, as `rich` has it."""
        self.description, self.total, self.done = description, total, 0.0
        self.show(begins=True)
        return 0

    def advance(self, task: int, advance: float = 1) -> None:
        """A step is done."""
        self.update(task, advance=advance)

    def update(
        self,
        task: int,
        *,
        description: str | None = None,
        advance: float = 0,
        completed: float | None = None,
        total: float | None = None,
    ) -> None:
        """Change what is said, or how far it is."""
        begins = description is not None and description != self.description
        self.description = self.description if description is None else description
        if total is not None and self.total is None:
            self.restart()
        self.total = self.total if total is None else total
        self.done = self.done + advance if completed is None else completed
        self.show(begins)

    def show(self, begins: bool = False) -> None:
        """Tell whoever looks; `begins` where the description is new."""

    def restart(self) -> None:
        """From now on steps count, what was before was preparation."""

    def print(self, result: Any) -> None:
        """Put results on stdout; a bar steps aside for them."""
        stdout().print(result)


class _OnATerminal(Bar):
    def __init__(self, bar: Any) -> None:
        super().__init__()
        self.bar, self.task = bar, None

    def show(self, begins: bool = False) -> None:
        if self.task is None:
            self.task = self.bar.add_task(self.description, total=self.total)
        self.bar.update(
            self.task, description=self.description, completed=self.done, total=self.total
        )

    def print(self, result: Any) -> None:
        # on one terminal all goes through the console of the bar, which else would be written over
        (self.bar.console if sys.stdout.isatty() else stdout()).print(result)


class _InALog(Bar):
    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self.out, self.last = out, -math.inf
        self.began = self.since = time.monotonic()
        self.lock, self.end = threading.Lock(), threading.Event()

    def show(self, begins: bool = False) -> None:
        if not self.description:  # the watcher may wake before there is a task
            return
        now = time.monotonic()
        with self.lock:
            if now - self.last < (NEW if begins else EVERY):
                return
            self.last = now
            print(self.text(now - self.began, now - self.since), file=self.out, flush=True)

    def restart(self) -> None:
        self.since = time.monotonic()

    def text(self, seconds: float, counted: float) -> str:
        """`answering 12 of 40, 0:31, about 1:12 left`."""
        parts = [self.description]
        if self.total and (self.done or self.total > 1):
            parts[0] += f" {self.done:g} of {self.total:g}"
        parts.append(clock(seconds))
        if self.total and 0 < self.done < self.total:
            parts.append(f"about {clock(counted * (self.total - self.done) / self.done)} left")
        return ", ".join(parts)

    def watch(self) -> None:
        while not self.end.wait(1.0):
            self.show()


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def on_a_terminal(console: Console) -> Iterator[Bar]:
    """A bar with the time left."""
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
        console=console,
        redirect_stdout=False,
    ) as bar:
        yield _OnATerminal(bar)


def in_a_log(out: TextIO) -> Iterator[Bar]:
    """Lines, one in `EVERY` seconds and where something new begins."""
    bar = _InALog(out)
    watcher = threading.Thread(target=bar.watch, daemon=True)
    watcher.start()
    try:
        yield bar
    finally:
        bar.end.set()
        watcher.join()
