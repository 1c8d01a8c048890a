"""Costs: which call is measured when, on a runner that only takes notes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from vtc.eval.common.settings import Setting
from vtc.eval.suites.base import Item
from vtc.eval.tune import costs
from vtc.eval.tune.costs import TURNS, Costs
from vtc.eval.tune.space import Candidate


class Notes:
    """Stands for a runner; `warm` has the settings that ran on the prompt at hand."""

    def __init__(self) -> None:
        self.warm: set[str] = set()
        self.on = ""
        self.loaded = SimpleNamespace(model=self, device=torch.device("cpu"))

    @contextlib.contextmanager
    def compressed(self, setting: Setting) -> Iterator[None]:
        self.on = setting.key
        yield

    def inputs(self, rows: Any) -> dict[str, Any]:
        self.warm.clear()
        return {}

    def generate(self, **given: Any) -> None:
        self.warm.add(self.on)


def test_pairs_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are warm on a prompt before it counts, and take turns to be first."""
    runner = Notes()
    timed: list[str] = []

    def stopwatch(run: Any, device: Any) -> float:
        assert runner.on in runner.warm
        timed.append(runner.on)
        run()
        return 1.0

    monkeypatch.setattr(costs, "stopwatch", stopwatch)
    picture = Image.new("RGB", (4, 4))
    items = [Item(str(n), (lambda: picture,), "?", ("a",)) for n in range(8)]
    chosen = [Candidate("divprune", 0.5), Candidate("pool", 0.5)]
    keys = [c.key for c in chosen]
    found = Costs("time", tmp_path)
    for _ in range(2):
        found.measure(runner, chosen, items)  # type: ignore[arg-type]
    pairs = [(timed[i], timed[i + 1]) for i in range(0, len(timed), 2)]
    assert len(pairs) == 2 * TURNS * len(keys)
    for key in keys:
        first = [pair[0] == key for pair in pairs if key in pair]
        assert all("none@1" in pair for pair in pairs) and sum(first) == len(first) / 2
    assert [found.of(c) for c in chosen] == [1.0, 1.0]
