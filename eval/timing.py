"""Prefill times of several settings, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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
    for turn in range(rounds + 1):
        order = list(cases) if turn % 2 else list(reversed(cases))
        for name in order:
            seconds = cases[name]()
            if turn:
                times[name].append(seconds)
            progress()
    return times


def stopwatch(call: Callable[[], Any], device: Any = "cpu") -> float:
    """Seconds that `call` takes, work queued on an accelerator included."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def ratio(times: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """`times` against `baseline`, round by round."""
    ratios = sorted(a / b for a, b in zip(times, baseline, strict=True))
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0], 1)
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(statistics.median(ratios), low, high, len(ratios))


def _wait(device: Any) -> None:
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
