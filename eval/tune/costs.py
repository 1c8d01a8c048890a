"""What settings cost against the full model, measured side by side in the run that tunes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vtc.errors import VTCError, nearest
from vtc.eval.accuracy.runner import Row, Runner
from vtc.eval.common.records import Lines, read_lines
from vtc.eval.common.settings import FULL, Setting
from vtc.eval.common.timing import interleaved, ratio, spread, stopwatch
from vtc.eval.suites.base import Item
from vtc.eval.tune.space import Candidate
from vtc.pictures import load_image

KINDS = ("time", "tokens", "memory")
SAID = {
    "time": "time to the first token",
    "tokens": "visual tokens in the language model, on average over its layers",
    "memory": "peak memory up to the first token, weights aside",
}
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

    def spread(self, candidate: Candidate) -> tuple[float, float, float]:
        """Median and quartiles."""
        ratios = self.ratios.get(candidate.key)
        return spread(ratios) if ratios else (float("nan"),) * 3

    def measure(self, runner: Runner, candidates: Sequence[Candidate], items: Sequence[Item]) -> None:
        """Bring every setting to `TURNS` more ratios a round. Every turn is another prompt, and its
        times are of the full model and all settings in turn.

        Args:
            items: questions about different images.
        """
        if self.kind == "tokens" or not candidates:
            return
        self.round += 1
        wanted = TURNS * self.round if self.kind == "time" else TURNS
        short = [c for c in candidates if len(self.ratios[c.key]) < wanted]
        if not short:
            return
        count = wanted - min(len(self.ratios[c.key]) for c in short)
        lines = Lines(self.path)
        try:
            for turn in range(count):
                item = items[(wanted - count + turn) % len(items)]
                for key, value in self._ratios(runner, short, item).items():
                    self.ratios[key].append(value)
                    said = {"setting": key, "kind": self.kind, "ratio": value}
                    lines.write(json.dumps(said))
        finally:
            lines.close()

    def _ratios(self, runner: Runner, candidates: Sequence[Candidate], item: Item) -> dict[str, float]:
        try:
            inputs = runner.inputs([Row(item, tuple(load_image(call()) for call in item.images))])
        except Exception:  # a picture that cannot be read has failed as a question already
            return {}
        calls = {c.key: _first_token(runner, c, inputs) for c in [FULL, *candidates]}
        device = runner.loaded.device
        if self.kind == "memory":
            from vtc.eval.efficiency.memory import peak_bytes

            bytes_ = {}
            for key, call in calls.items():
                found: list[int] = []
                _safe(lambda call=call: call(lambda run: found.append(peak_bytes(run, device))))
                bytes_[key] = found[0] if found else None
                self.step()
            full = bytes_.pop(FULL.key) or 1
            return {key: value / full for key, value in bytes_.items() if value is not None}
        able: dict[str, Callable[[], float]] = {}
        for key, call in calls.items():

            def timed(call: Any = call) -> float:
                found: list[float] = []
                call(lambda run: found.append(stopwatch(run, device)))
                return found[0]

            if _safe(timed):
                able[key] = timed
        times = interleaved(able, 1, self.step)
        full = times.pop(FULL.key)
        return {key: ratio(mine, full).median for key, mine in times.items()}


def _first_token(runner: Runner, setting: Setting, inputs: Any) -> Callable[[Any], None]:
    """A call that puts the setting on the model and hands what is to be measured to its argument."""
    import torch

    def call(measured: Callable[[Callable[[], Any]], Any]) -> None:
        def run() -> Any:
            with torch.inference_mode():
                return runner.loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False)

        with runner.compressed(setting):
            measured(run)

    return call


def _safe(call: Callable[[], Any]) -> bool:
    """Whether a call works on this prompt; a budget may be one that this picture cannot have."""
    try:
        call()
    except Exception:  # its questions have failed with the reason already
        return False
    return True
