"""What a run leaves on disk: one line of `measures.jsonl` a setting, and a table of all of them.

A line, as JSON:

    {"setting": "globalcom2@0.25", "method": "globalcom2", "retention": 0.25, "seed": 0,
     "options": {}, "attention": "sdpa", "tokens": 768, "tokens_full": 2928, "patches": 720,
     "patches_full": 2880, "prompt": 816, "prompt_full": 2976, "lengths": [816, 816],
     "average_tokens": 768.0, "rounds": 5, "partial": false,
     "error": null, "notes": [],
     "measures": {
       "ttft": {"value": 1.71, "low": 1.69, "high": 1.75, "unit": "s",
                "ratio": {"median": 0.31, "low": 0.30, "high": 0.32, "rounds": 5},
                "ideal": {"median": 1.04, "low": 1.03, "high": 1.05, "rounds": 5}}, ...},
     "extrapolated": {...}}

`measures` has the keys of `MEASURES`. The uncompressed model is the line with method "none"; its
own ratios are 1 under the first attention of the run. For accuracy against time take "ttft": it
holds vision, selection and prefill, while "prefill_time" is the language model alone. Where
`extrapolated` is not empty (a model of reduced depth) it has the same keys at the true depth.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vtc.errors import VTCError
from vtc.eval.common.records import read_lines
from vtc.eval.common.timing import Ratio

#: file of the lines, in a run's folder
LINES = "measures.jsonl"

#: name -> unit of every figure; `docs/efficiency.md` defines them
MEASURES = {
    "vision_time": "s",
    "selection_time": "s",
    "prefill_time": "s",
    "inside_time": "s",
    "ttft": "s",
    "decode_speed": "tokens/s",
    "peak_memory": "bytes",
    "kv_cache": "bytes",
    "vision_flops": "FLOPs",
    "selection_flops": "FLOPs",
    "prefill_flops": "FLOPs",
    "inside_flops": "FLOPs",
    "flops": "FLOPs",
}


@dataclass(frozen=True)
class Measure:
    """One figure of a setting.

    Attributes:
        value: median over the rounds.
        low, high: quartiles.
        unit: of `value`.
        ratio: against the uncompressed model, round by round; None where that is 0.
        ideal: against the ideal, round by round; None where that is 0.
    """

    value: float
    low: float
    high: float
    unit: str
    ratio: Ratio | None = None
    ideal: Ratio | None = None


@dataclass(frozen=True)
class Line:
    """What was measured for one setting.

    Attributes:
        setting: `records.Setting.key`; unique in a run together with `attention`.
        method, retention, seed, options: of the setting.
        attention: attention implementation of the whole model.
        tokens, tokens_full: visual tokens that enter the language model, and those before compression,
            separators included; None when nothing was measured.
        patches, patches_full: the patch tokens among them; None for the uncompressed model.
        prompt, prompt_full: the same of the whole prompt, text included.
        lengths: tokens of the prompt that entered each layer, text included; they differ where a method
            works inside the language model. None when nothing was measured.
        average_tokens: visual tokens that enter a layer of the published model, averaged over its
            layers; of a method in front of the language model and one inside it the product.
        rounds: timed rounds that were finished.
        partial: whether the run was interrupted before the last round.
        measures: name -> figure, as measured.
        extrapolated: name -> figure at the true depth; empty when the model has it.
        error: why there are no figures, or none of later rounds; None when nothing went wrong.
        notes: what a reader should know.
    """

    setting: str
    method: str
    retention: float | None
    seed: int
    options: Mapping[str, Any]
    attention: str
    tokens: int | None = None
    tokens_full: int | None = None
    patches: int | None = None
    patches_full: int | None = None
    prompt: int | None = None
    prompt_full: int | None = None
    lengths: tuple[int, ...] | None = None
    average_tokens: float | None = None
    rounds: int = 0
    partial: bool = False
    measures: Mapping[str, Measure] = field(default_factory=dict)
    extrapolated: Mapping[str, Measure] = field(default_factory=dict)
    error: str | None = None
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def line(self) -> str:
        """The line as JSON."""
        return json.dumps(self.plain(), ensure_ascii=False)

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Line:
        """The inverse of `line`."""
        figures = {
            part: {name: _measure(data) for name, data in line[part].items()}
            for part in ("measures", "extrapolated")
        }
        lengths = line.get("lengths")  # runs were made before they were noted
        lengths = None if lengths is None else tuple(lengths)
        return cls(**{**line, **figures, "notes": tuple(line["notes"]), "lengths": lengths})


def _measure(data: Mapping[str, Any]) -> Measure:
    ratios = {key: Ratio(**data[key]) if data[key] else None for key in ("ratio", "ideal")}
    return Measure(**{**data, **ratios})


def read_measures(folder: Path) -> list[Line]:
    """The lines of an efficiency run, in the order they were measured.

    Raises:
        VTCError: the folder has none, or a line is none of an efficiency run.
    """
    try:
        return list(read_lines(folder / LINES, Line.read))
    except OSError as error:
        raise VTCError(f"run={str(folder)!r}: no readable {LINES} there ({error})") from None


def write_summary(path: Path, lines: Sequence[Line]) -> None:
    """A CSV with a row a setting; of every figure value, ratio and ratio to the ideal."""
    columns = ["value", "ratio", "ratio_low", "ratio_high", "ideal", "ideal_low", "ideal_high"]
    parts = [("", "measures")]
    if any(line.extrapolated for line in lines):
        parts.append(("extrapolated_", "extrapolated"))
    names = [
        f"{prefix}{name}_{column}" for prefix, _ in parts for name in MEASURES for column in columns
    ]
    first = "setting method retention seed attention tokens tokens_full patches patches_full"
    fixed = [
        *first.split(),
        "prompt",
        "prompt_full",
        "average_tokens",
        "rounds",
        "partial",
        "error",
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*fixed, *names])
        for line in lines:
            row = [getattr(line, name) for name in fixed]
            for _, part in parts:
                for name in MEASURES:
                    row += _cells(getattr(line, part).get(name))
            writer.writerow(row)


def _cells(measure: Measure | None) -> list[float | None]:
    if measure is None:
        return [None] * 7
    cells: list[float | None] = [measure.value]
    for ratio in (measure.ratio, measure.ideal):
        cells += [None] * 3 if ratio is None else [ratio.median, ratio.low, ratio.high]
    return cells
