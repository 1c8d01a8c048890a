"""A study: settings by name, each run with several seeds, and what is made of the rows."""

from __future__ import annotations

import csv
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtc.errors import VTCError
from vtc.eval.generation.seeds import Comparison, estimate, paired

Row = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """A column of the result table.

    Attributes:
        key: in the rows.
        label: of the column.
        digits: behind the point.
    """

    key: str
    label: str
    digits: int = 2


@dataclass(frozen=True)
class Study:
    """One committed result.

    Attributes:
        name: of the command and of the files.
        title: what is compared.
        question: what a reader wants to know, in one or two sentences.
        settings: everything the runs share; rows of other settings are not taken.
        cases: what differs, by the name a table shows.
        run: `(case's options, settings, seed, pictures)` to one row of figures; `pictures` is a
            folder for the first seed, else None.
        metrics: columns of the table.
        compare: `(metric key, case, case)` to compare seed by seed.
        effects: `(metric key, case)` whose mean is compared with 0.
        figure: `(rows, path)` draws the curves.
        limits: what the study cannot say, one sentence each.
        pictures: what the files `NAME.png` show that `run` writes, by their name.
        seeds: of every case, unless told otherwise; 1 where nothing is compared.
    """

    name: str
    title: str
    question: str
    settings: dict[str, Any]
    cases: dict[str, dict[str, Any]]
    run: Callable[[dict[str, Any], dict[str, Any], int, Path | None], Row]
    metrics: tuple[Metric, ...]
    compare: tuple[tuple[str, str, str], ...]
    figure: Callable[[list[Row], Path], None]
    effects: tuple[tuple[str, str], ...] = ()
    limits: tuple[str, ...] = ()
    pictures: dict[str, str] = field(default_factory=dict)
    seeds: int = 5


def execute(
    study: Study,
    folder: Path,
    seeds: Sequence[int],
    progress: Callable[[str], Any] = lambda text: None,
) -> list[Row]:
    """Run what is missing; `NAME.jsonl` in `folder` keeps every finished run.

    Args:
        study: what to run.
        folder: of rows and pictures.
        seeds: of every case; runs go seed by seed, so that a stopped study has whole seeds.
        progress: told each run that is finished or was found.
    """
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # the models are too small for a GPU
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{study.name}.jsonl"
    done = read_rows(study, path)
    for seed in seeds:
        for case, options in study.cases.items():
            if (case, seed) not in done:
                start = time.process_time()
                row = study.run(options, study.settings, seed, folder if seed == seeds[0] else None)
                seconds = round(time.process_time() - start, 1)
                row = {"case": case, "seed": seed, "cpu_seconds": seconds, **row}
                done[case, seed] = row
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**row, "settings": _settings(study, case)}) + "\n")
            progress(f"{study.name}: {case}, seed {seed}")
    return [done[case, seed] for case in study.cases for seed in seeds]


def read_rows(study: Study, path: Path) -> dict[tuple[str, int], Row]:
    """Finished runs of the study's present settings, by case and seed."""
    rows: dict[tuple[str, int], Row] = {}
    if not path.is_file():
        return rows
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            settings = row.pop("settings")
            case = row["case"]
        except (json.JSONDecodeError, KeyError) as error:
            # a run that was killed while it wrote leaves half a line
            raise VTCError(
                f"output: line {number} of {path} is no finished run; delete it"
            ) from error
        if case in study.cases and settings == _settings(study, case):
            rows[case, row["seed"]] = row
    return rows


def values(rows: Sequence[Row], case: str, key: str) -> list[float]:
    """One value a seed, in the order of the rows; none where a case has no such value."""
    found = [row.get(key) for row in rows if row["case"] == case]
    return [value for value in found if value is not None]


def comparisons(study: Study, rows: Sequence[Row]) -> list[tuple[Metric, Comparison]]:
    """Paired differences; intervals are widened for as many as the metric has."""
    metrics = {metric.key: metric for metric in study.metrics}
    out = []
    for key, a, b in study.compare:
        count = sum(other == key for other, _, _ in study.compare)
        pair = paired(values(rows, a, key), values(rows, b, key), (a, b), count)
        out.append((metrics[key], pair))
    return out


def effects(study: Study, rows: Sequence[Row]) -> list[str]:
    """A sentence for each mean that is compared with 0."""
    metrics = {metric.key: metric for metric in study.metrics}
    out = []
    for key, case in study.effects:
        found = values(rows, case, key)
        mean, digits = estimate(found, 1 - 0.05 / len(study.effects)), metrics[key].digits
        sure = len(found) > 2 and mean.low * mean.high > 0
        verdict = "" if sure else "; these seeds do not tell it from 0"
        above = sum(value > 0 for value in found)
        out.append(
            f"{metrics[key].label}, {case}: {mean.mean:+.{digits}f} [{mean.low:+.{digits}f}, "
            f"{mean.high:+.{digits}f}], above 0 in {above} of {mean.count} seeds{verdict}."
        )
    return out


def summarise(study: Study, rows: Sequence[Row], folder: Path) -> dict[str, Any]:
    """Write `NAME.json`, `NAME.csv` and `NAME.png`, and return what the JSON holds."""
    table = []
    for case in study.cases:
        entry: dict[str, Any] = {"case": case}
        for metric in study.metrics:
            have = values(rows, case, metric.key)
            if have:
                entry[metric.key] = _rounded(vars(estimate(have)))
        table.append(entry)
    pairs = comparisons(study, rows)
    seeds = sorted({row["seed"] for row in rows})
    summary = {
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "command": f"python -m vtc.eval generation study {study.name}",
        "seeds": seeds,
        "runs": len(rows),
        "cpu_seconds_a_run": statistics.median(
            [row["cpu_seconds"] for row in rows if "cpu_seconds" in row] or [0.0]
        ),
        "settings": study.settings,
        "metrics": [vars(metric) for metric in study.metrics],
        "table": table,
        "comparisons": [
            {
                "metric": m.key,
                "a": c.a,
                "b": c.b,
                "separated": c.separated,
                "wins": c.wins,
                **_rounded(vars(c.difference)),
            }
            for m, c in pairs
        ],
        "reading": [c.text(m.label, m.digits) for m, c in pairs] + effects(study, rows),
        "limits": list(study.limits),
        "pictures": study.pictures,
    }
    (folder / f"{study.name}.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    _write_csv(study, rows, folder / f"{study.name}.csv")
    study.figure(list(rows), folder / f"{study.name}.png")
    return summary


def cell(found: dict[str, Any], digits: int) -> str:
    """An entry of the table: `mean ± sd`, or the value where there is one seed."""
    spread = f" ± {found['sd']:.{digits}f}" if found["count"] > 1 else ""
    return f"{found['mean']:.{digits}f}{spread}"


def markdown(summary: dict[str, Any]) -> str:
    """The table of a summary, and under it the command and what a run costs."""
    metrics = summary["metrics"]
    lines = [["", *(metric["label"] for metric in metrics)], ["---", *["---:"] * len(metrics)]]
    for row in summary["table"]:
        found = [(row.get(metric["key"]), metric["digits"]) for metric in metrics]
        lines.append([row["case"], *(cell(value, n) if value else "" for value, n in found)])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    cost = f"{summary['runs']} runs of about {summary['cpu_seconds_a_run']:.0f} CPU seconds"
    return f"{table}\n`{summary['command']}`: {cost}.\n"


def _write_csv(study: Study, rows: Sequence[Row], path: Path) -> None:
    """One line a run; curves stay in the JSONL."""
    names = ["case", "seed", "cpu_seconds", *(metric.key for metric in study.metrics)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow(_rounded(row))


def _settings(study: Study, case: str) -> dict[str, Any]:
    return json.loads(json.dumps({**study.settings, "case": study.cases[case]}))


def _rounded(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in entry.items()}
