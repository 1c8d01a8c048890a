"""What settings cost against the full model, measured side by side in the run that tunes."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vtc.errors import VTCError, nearest
from vtc.eval.accuracy.runner import Row, Runner
from vtc.eval.common.records import Lines, read_lines
from vtc.eval.common.settings import FULL, Setting
from vtc.eval.common.timing import spread, stopwatch
from vtc.eval.suites.base import Item
from vtc.eval.tune.space import Candidate
from vtc.pictures import load_image

KINDS = ("time", "tokens", "memory")
SAID = {
    "time": "time to the first token",
    "tokens": "visual tokens in the language model, on average over its layers",
    "memory": "peak memory up to the first token, weights aside",
}
#: what takes a function that measures a call, and returns what it measured
Call = Callable[[Callable[[Callable[[], Any]], float]], float]

TURNS = 3  # timed prompts of a setting in each round
FILE = "costs.jsonl"


class Costs:
    """Costs by setting, kept beside the answers.

    Args:
        kind: one of `KINDS`; "tokens" needs no measuring here.
        folder: of the run.
        step: is called after each measured call.
    """

    def __init__(self, kind: str, folder: Path, step: Callable[[], Any] = lambda: None) -> None:
        if kind not in KINDS:
            raise VTCError(
                f"cost: got {kind!r}, allowed are {', '.join(KINDS)}{nearest(str(kind), KINDS)}"
            )
        self.kind, self.path, self.step = kind, folder / FILE, step
        self.ratios: dict[str, list[float]] = defaultdict(list)
        self.round = 0
        for line in read_lines(self.path) if self.path.exists() else ():
            if line["kind"] == kind:
                self.ratios[line["setting"]].append(line["ratio"])

    def of(self, candidate: Candidate) -> float:
        """Median over its prompts, full model = 1; nan before it was measured."""
        return self.spread(candidate)[0]

    def dear(self, candidate: Candidate) -> bool:
        """Whether it surely saves nothing: of times a quarter at most is below the full model's."""
        ratios = self._known(candidate)
        if self.kind == "time" and len(ratios) < 2 * TURNS:
            return False
        return bool(ratios) and self.spread(candidate)[1] >= 1

    def spread(self, candidate: Candidate) -> tuple[float, float, float]:
        """Median and quartiles."""
        ratios = self._known(candidate)
        return spread(ratios) if ratios else (float("nan"),) * 3

    @property
    def _wanted(self) -> int:
        return TURNS * self.round if self.kind == "time" else TURNS

    def _known(self, candidate: Candidate) -> list[float]:
        """What was measured up to this round, also where a run that was stopped had gone further."""
        return self.ratios.get(candidate.key, [])[: self._wanted]

    def measure(
        self, runner: Runner, candidates: Sequence[Candidate], items: Sequence[Item]
    ) -> None:
        """Bring every setting to `TURNS` more ratios a round. Every turn is another prompt; on it each
        setting is measured beside the full model.

        Args:
            items: questions about different images.
        """
        if self.kind == "tokens" or not candidates:
            return
        self.round += 1
        wanted = self._wanted
        short = [c for c in candidates if len(self.ratios[c.key]) < wanted]
        if not short:
            return
        count = wanted - min(len(self.ratios[c.key]) for c in short)
        lines = Lines(self.path)
        try:
            for turn in range(wanted - count, wanted):
                item = items[turn % len(items)]
                for key, value in self._ratios(runner, short, item, turn).items():
                    self.ratios[key].append(value)
                    said = {"setting": key, "kind": self.kind, "ratio": value}
                    lines.write(json.dumps(said))
        finally:
            lines.close()

    def _ratios(
        self, runner: Runner, candidates: Sequence[Candidate], item: Item, turn: int
    ) -> dict[str, float]:
        try:
            inputs = runner.inputs([Row(item, tuple(load_image(call()) for call in item.images))])
        except Exception:  # a picture that cannot be read has failed as a question already
            return {}
        kind = _peak if self.kind == "memory" else stopwatch
        measured = functools.partial(_on, kind, runner.loaded.device)
        full, found = _first_token(runner, FULL, inputs), {}
        if not _works(full):  # which warms up as well, as for the settings below
            return {}
        for number, candidate in enumerate(candidates):
            mine = _first_token(runner, candidate, inputs)
            if not _works(mine):
                continue
            # side by side, each first in every second turn of a setting
            calls = [mine, full] if (number + turn) % 2 else [full, mine]
            values = {call: call(measured) for call in calls}
            found[candidate.key] = values[mine] / max(values[full], 1e-9)
            self.step()
        return found


def _on(measured: Callable[[Any, Any], float], device: Any, run: Callable[[], Any]) -> float:
    return measured(run, device)


def _peak(run: Callable[[], Any], device: Any) -> float:
    from vtc.eval.common.memory import peak_allocated

    return float(peak_allocated(run, device))


def _first_token(runner: Runner, setting: Setting, inputs: Any) -> Call:
    """A call that puts the setting on the model, and hands what is to be measured to its argument."""
    import torch

    def run() -> Any:
        with torch.inference_mode():
            return runner.loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False)

    def call(measured: Callable[[Callable[[], Any]], float]) -> float:
        with runner.compressed(setting):
            return measured(run)

    return call


def _works(call: Call) -> bool:
    """Whether a setting works on this prompt; a budget may be one that this picture cannot have."""
    try:
        call(lambda run: bool(run() is None))
    except Exception:  # its questions have failed with the reason already
        return False
    return True
