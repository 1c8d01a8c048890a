"""Compare trained scorers with `coverage` and its rivals on validation scenes of the reference VLM.

Each row is compared with `coverage` by a paired test over scenes. Test scenes are not touched. What the
numbers of docs/own-methods.md come from is `reference/logs/learned.json`.

    python -m vtc.eval.scorer.compare --scorers runs/scorer0 runs/scorer1 --output learned.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import vtc
from vtc.eval import reference
from vtc.eval.calibrate_coverage import compressed, figures, hits, listened, plain, table
from vtc.eval.common.arguments import positive
from vtc.eval.common.loading import load
from vtc.eval.common.statistics import compare
from vtc.eval.reference.questions import TYPES
from vtc.eval.reference.threads import one_thread
from vtc.methods.base import Method
from vtc.tokens import keep_patches

RIVALS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("divprune", {}),
    ("scope", {"scope": "image"}),
    ("uniform", {}),
)


def settings(scorers: Sequence[Path]) -> list[tuple[str, Method]]:
    """Every row but the first: its name, and its method at any budget."""
    ours = [
        (f"learned, seed {n}", vtc.create_method("learned", scorer=each))
        for n, each in enumerate(scorers)
    ]
    theirs = [(name, vtc.create_method(name, **options)) for name, options in RIVALS]
    return [("coverage", vtc.create_method("coverage")), *ours, *theirs]


@one_thread()
def study(
    scorers: Sequence[Path],
    sample: Sequence[reference.Scene],
    retentions: Sequence[float],
    output: Path | None,
) -> list[dict[str, Any]]:
    """A row for each setting and retention, written as they come."""
    loaded = load("reference", "cpu")
    chosen = settings(scorers)
    tokens = listened(loaded, sample, [method for _, method in chosen])
    asked = [(s, q) for s, scene in enumerate(sample) for q in range(len(scene.questions))]
    clusters = [str(scene) for scene, _ in asked]
    reading = np.array([TYPES[sample[s].questions[q].type] == "reading" for s, q in asked])

    def scores(outs: Mapping[int, Any]) -> Any:
        right = hits(loaded.model, sample, outs)
        return np.array([float(right[key]) for key in asked])

    full = scores({i: keep_patches(each, each.valid) for i, each in enumerate(tokens)})
    rows: list[dict[str, Any]] = []
    rows.append({"setting": "full", "retention": 1.0, **figures(full, reading)})
    for retention in retentions:
        columns: list[Any] = []
        for name, method in chosen:
            budget = replace(method, retention=retention)
            columns.append(scores({i: compressed(budget, each) for i, each in enumerate(tokens)}))
            row = {"setting": name, "retention": retention, **figures(columns[-1], reading)}
            if len(columns) > 1:
                for which, some in (("", slice(None)), ("reading_", reading)):
                    pair = np.array([columns[0][some], columns[-1][some]])
                    of_scene = [
                        c for c, here in zip(clusters, _all(some, asked), strict=True) if here
                    ]
                    (found,) = compare(pair, of_scene, ["coverage", name], [(1, 0)])
                    gap = found.difference
                    row |= {
                        f"{which}difference": gap.value,
                        f"{which}low": gap.low,
                        f"{which}high": gap.high,
                    }
            rows.append(row)
            if output:
                facts = {"scenes": len(sample), "questions": len(asked), "split": "val"}
                done = {"settings": facts, "rows": plain(rows)}
                output.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    return plain(rows)


def _all(some: Any, asked: Sequence[Any]) -> Any:
    return some if isinstance(some, np.ndarray) else np.ones(len(asked), dtype=bool)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scorers", type=Path, nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[60], help="of the scenes")
    parser.add_argument("--scenes", type=positive, default=40, help="of each seed")
    parser.add_argument("--retention", type=float, nargs="+", default=[0.03, 0.05, 0.1, 0.25])
    parser.add_argument("--output", type=Path, help="JSON with every row")
    args = parser.parse_args(argv)
    sample = [
        s for seed in args.seeds for s in reference.scenes("val", args.scenes, seed) if s.questions
    ]
    Console(width=110).print(table(study(args.scorers, sample, args.retention, args.output)))


if __name__ == "__main__":
    main()
