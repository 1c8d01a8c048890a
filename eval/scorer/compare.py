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


def page(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as lines of a table in Markdown: accuracy in %, that of reading questions in brackets,
    and below, in points, how far scorers are from `coverage` with the interval."""
    shares = sorted({row["retention"] for row in rows} - {1.0}, reverse=True)
    by_name: dict[str, dict[float, Mapping[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["setting"], {})[row["retention"]] = row
    full = by_name.pop("full")[1.0]
    columns = " | ".join(f"{share:.0%}" for share in shares)
    head = [f"| tokens | {columns} |"]
    head.append("|---|" + "---|" * len(shares))
    lines = [f"| all tokens | {_cell(full)} |" + " |" * (len(shares) - 1)]
    gaps = []
    for name, each in by_name.items():
        lines.append(f"| {name} | " + " | ".join(_cell(each[s]) for s in shares) + " |")
        if name.startswith("learned"):
            gaps.append(f"| {name} | " + " | ".join(_gap(each[s]) for s in shares) + " |")
    return [*head, *lines, "", f"| ahead of `coverage`, points | {columns} |", head[1], *gaps]


def _cell(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} ({100 * row['reading']:.1f})"


def _gap(row: Mapping[str, Any]) -> str:
    one, low, high = (100 * row[key] for key in ("difference", "low", "high"))
    return f"{one:+.1f} [{low:+.1f}, {high:+.1f}]"


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
