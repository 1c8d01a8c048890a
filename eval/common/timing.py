"""Prefill times of several settings, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ratio:
    """Time of one setting as a multiple of the baseline's.

    Attributes:
        median: median over the rounds of `time / baseline time of the same round`.
        low, high: the quartiles of the same ratios.
        rounds: how many there were.
    """

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def interleaved(
    cases: Mapping[str, Callable[[], float]],
    rounds: int,
    progress: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """Time every case once a round, so that a busy machine disturbs all of them alike.

    The first round warms up and is not counted. Every second round runs backwards, so that no case
    always follows the same one.

    Args:
        cases: name -> a call that returns the seconds it wants counted (see `stopwatch`).
        rounds: counted rounds.
        progress: called after each timed call.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn, order in turns(list(cases), rounds + 1):
        for name in order:
            seconds = cases[name]()
            if turn:
                times[name].append(seconds)
            progress()
    return times


def turns(cases: Sequence[T], rounds: int) -> Iterator[tuple[int, list[T]]]:
    """Number and order of every round; every second one runs backwards."""
    for turn in range(rounds):
        yield turn, list(cases) if turn % 2 else list(reversed(cases))


def stopwatch(
    call: Callable[[], Any], device: Any = "cpu", clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds that `call` takes, work queued on an accelerator included.

    Args:
        clock: `time.process_time` counts what the process itself computes, on all of its threads, and
            leaves out what other processes take of a busy machine.
    """
    _wait(device)
    start = clock()
    call()
    _wait(device)
    return clock() - start


def ratio(times: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """`times` against `baseline`, round by round."""
    ratios = [a / b for a, b in zip(times, baseline, strict=True)]
    return Ratio(*spread(ratios), len(ratios))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def _wait(device: Any) -> None:
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
