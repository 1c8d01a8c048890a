"""Compare settings of one accuracy run or several, question by question.

A report compares all settings of a run with each other, and corrects for all of these comparisons. Here
are the few that a question is about. Runs must be of one model and suite; some may have asked fewer
questions.

    python -m vtc.eval.paired docs/results/reference runs/asked \\
        --pair 'coverage@0.1{"guidance": 0.5}' coverage@0.1 --output paired.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vtc.errors import VTCError, nearest
from vtc.eval.common.manifest import differences
from vtc.eval.common.records import Answer, read_answers, read_manifest
from vtc.eval.common.statistics import compare
from vtc.eval.report.runs import SAME, Recorded, between


def paired(
    folders: Sequence[Path], pairs: Sequence[tuple[str, str]], kinds: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row for each pair, with accuracies on the questions that both answered and their difference.

    Args:
        folders: of the runs. Where two have the same setting the first one counts.
        pairs: of settings, by the names that answers have; one family for Holm's correction. A method
            that draws has a name for each seed: `random@0.1`, `random@0.1#1`.
        kinds: of the questions; none for all.

    Raises:
        VTCError: a folder without a run, runs of several models or suites, a setting that no run has,
            or settings without a question in common.
    """
    _check(folders)
    found: dict[str, dict[str, Answer]] = {}
    for folder in folders:
        answers: dict[str, dict[str, Answer]] = {}
        for answer in read_answers(folder):
            if answer.score is not None and (not kinds or answer.kind in kinds):
                answers.setdefault(answer.setting, {})[answer.item] = answer
        found = answers | found
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    for name in names:
        if name not in found:
            raise VTCError(f"pair: got {name!r}, no run has it{nearest(name, list(found))}")
    items = {item: answer.cluster for name in names for item, answer in found[name].items()}
    scores = np.array(
        [
            [found[name][item].score if item in found[name] else np.nan for item in items]
            for name in names
        ],
        dtype=float,
    )
    made = compare(
        scores, list(items.values()), names, [(names.index(a), names.index(b)) for a, b in pairs]
    )
    if len(made) < len(pairs):
        raise VTCError(f"pair: {len(pairs) - len(made)} of {len(pairs)} have no question in common")
    out = []
    for row in made:
        both = scores[[names.index(row.first), names.index(row.second)]]
        accuracy = both[:, ~np.isnan(both).any(0)].mean(1).tolist()
        out.append({**asdict(row), "verdict": row.verdict, "accuracy": accuracy})
    return out


def _check(folders: Sequence[Path]) -> None:
    """Raise `VTCError` where runs do not go together."""

    def part(run: Recorded) -> dict[str, Any]:
        suite = dict(run.facts.get("suite") or {})
        for asked in ("limit", "items"):  # of questions; pairs are compared on those in common
            suite.pop(asked, None)
        return {**{name: run.facts.get(name) for name in SAME}, "suite": suite}

    first, *others = (Recorded(folder, read_manifest(folder)) for folder in folders)
    for other in others:
        found = list(differences(part(first), part(other)))
        if found:
            raise VTCError(f"run: {between(first, other, found)}; such runs cannot be compared")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vtc.eval.paired", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of an accuracy run"
    )
    parser.add_argument(
        "--pair", nargs=2, action="append", required=True, metavar=("A", "B"),
        help="settings as the answers name them; repeatable, corrected together",
    )  # fmt: skip
    parser.add_argument("--kinds", default="", metavar="LIST", help="of questions; default all")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON")
    args = parser.parse_args(argv)
    try:
        rows = paired(
            args.runs, [(a, b) for a, b in args.pair], [k for k in args.kinds.split(",") if k]
        )
    except VTCError as error:
        parser.error(str(error))
    for row in rows:
        value, low, high = (100 * row["difference"][key] for key in ("value", "low", "high"))
        first, second = (100 * mean for mean in row["accuracy"])
        print(
            f"{row['first']} {first:.1f}, {row['second']} {second:.1f}: "
            f"{value:+.1f} [{low:+.1f}, {high:+.1f}], "
            f"p {row['p']:.4f}, corrected {row['adjusted']:.4f}: {row['verdict']}"
        )
    if args.output is not None:
        args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
