"""The figures of an accuracy run: by setting, beside the uncompressed model, as JSON, CSV and table."""

from __future__ import annotations

import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtc.eval.accuracy.hard import hard_items
from vtc.eval.common.docs import table
from vtc.eval.common.records import Answer, read_answers, read_manifest
from vtc.eval.common.settings import FULL, Setting, share_label
from vtc.eval.common.statistics import by_cluster, intervals, over_seeds
from vtc.eval.suites import create_suite, suite_class
from vtc.eval.suites.base import Suite

Entry = dict[str, Any]
NAMES = ("key", "method", "options", "retention", "seed")
NOTHING = (None, None, None)
COUNTS = ("tokens", "tokens_full", "patches", "patches_full")


def summarise(folder: Path) -> Entry:
    """All figures of the run in `folder`.

    Returns:
        `suite`, `metric`, `hard`, the number of hard questions by share of pixels (see `hard.py`), and
        two lists. `settings` has one entry a setting: `key`, `method`,
        `options`, `retention`, `seed`; `answered` and `failed` rows; `value`, the headline figure;
        `share` of the uncompressed model's on the questions that both answered; mean `tokens` of a
        row (patch tokens and separators) and `patches`, and the same of the uncompressed model,
        `tokens_full` and `patches_full`; `figures` of the suite; `kinds`, the headline by kind of
        question. `methods` has one entry a method, its options and its retention, with the mean of
        all that over the `seeds` of a method that draws (of `failed` rows the sum), the standard
        deviation of `value` over them, and `low` and `high`, the 95 % interval over clusters of
        questions of the mean score (None where the headline is another figure), and `hard`, the mean
        score on the hard questions of its retention, with `hard_low` and `hard_high`; None without any.

    Raises:
        VTCError: the folder holds no run.
    """
    manifest = read_manifest(folder)
    suite = create_suite(manifest["suite"]["name"])
    rows: dict[str, list[Answer]] = {entry["key"]: [] for entry in manifest["settings"]}
    for answer in sorted(read_answers(folder), key=lambda answer: answer.item):
        if answer.setting in rows:
            rows[answer.setting].append(answer)
    full = {answer.item: answer for answer in _scored(rows.get(FULL.key, []))}
    settings = [
        {
            **{name: entry[name] for name in NAMES},
            **_figures(suite, rows[entry["key"]], full),
        }
        for entry in manifest["settings"]
    ]
    asked = [Setting(e["method"], e["retention"], e["seed"], e["options"]) for e in settings]
    hard = hard_items(asked, rows)
    return {
        "suite": suite.name,
        "metric": suite.metric,
        "hard": {str(share): len(items) for share, items in hard.items()},
        "methods": _over_seeds(settings, rows, suite.metric == suite.mean_metric, hard),
        "settings": settings,
    }


def write(folder: Path) -> Entry:
    """`summarise`, and write `summary.json`, `summary.csv` and `summary.md` beside the answers."""
    summary = summarise(folder)
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    (folder / "summary.md").write_text(markdown(summary), encoding="utf-8")
    entries = [_flat(entry) for entry in summary["settings"]]
    with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for e in entries for name in e)))
        writer.writeheader()
        writer.writerows(entries)
    return summary


def _scored(answers: Sequence[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.error is None and answer.score is not None]


def _figures(suite: Suite, answers: Sequence[Answer], full: Mapping[str, Answer]) -> Entry:
    scored = _scored(answers)
    figures = suite.summary(scored)
    by_kind: dict[str, list[Answer]] = defaultdict(list)
    for answer in scored:
        by_kind[answer.kind].append(answer)
    both = [answer for answer in scored if answer.item in full]
    ours = suite.summary(both).get(suite.metric)
    theirs = suite.summary([full[answer.item] for answer in both]).get(suite.metric)
    return {
        "answered": len(scored),
        "failed": len(answers) - len(scored),
        "value": figures.get(suite.metric),
        "share": ours / theirs if ours is not None and theirs else None,
        **{name: _mean([getattr(answer, name) for answer in scored]) for name in COUNTS},
        "figures": {name: value for name, value in figures.items() if name != suite.metric},
        "kinds": {
            kind: suite.summary(members).get(suite.metric)
            for kind, members in sorted(by_kind.items())
            if kind
        },
    }


def _over_seeds(
    settings: Sequence[Entry],
    rows: Mapping[str, Sequence[Answer]],
    mean: bool,
    hard: Mapping[float, Sequence[str]],
) -> list[Entry]:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in settings:
        groups[json.dumps([entry["method"], entry["options"], entry["retention"]])].append(entry)
    return [
        _group(members, [rows[entry["key"]] for entry in members], mean, hard)
        for members in groups.values()
    ]


def _group(
    members: Sequence[Entry],
    answers: Sequence[Sequence[Answer]],
    mean: bool,
    hard: Mapping[float, Sequence[str]],
) -> Entry:
    values = [entry["value"] for entry in members if entry["value"] is not None]
    first = members[0]
    _, low, high = _mean_score(answers) if mean else NOTHING
    items = frozenset(hard.get(first["retention"], ()))
    of_hard = [[answer for answer in seed if answer.item in items] for seed in answers]
    on_hard = _mean_score(of_hard) if items else NOTHING
    return {
        **{name: first[name] for name in ("method", "options", "retention")},
        "seeds": len(members),
        "answered": _mean([entry["answered"] for entry in members]),
        "failed": sum(entry["failed"] for entry in members),
        "value": _mean(values),
        "low": low,
        "high": high,
        **dict(zip(("hard", "hard_low", "hard_high"), on_hard, strict=True)),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        **{name: _mean([entry[name] for entry in members]) for name in ("share", *COUNTS)},
        **{
            part: {
                name: _mean([entry[part].get(name) for entry in members]) for name in first[part]
            }
            for part in ("figures", "kinds")
        },
    }


def _mean_score(
    answers: Sequence[Sequence[Answer]],
) -> tuple[float | None, float | None, float | None]:
    """The mean score averaged over seeds with its interval; None where no row was answered."""
    clusters: dict[str, str] = {}
    scores: list[dict[str, float]] = []
    for seed in answers:
        scored = _scored(seed)
        scores.append({answer.item: answer.score or 0.0 for answer in scored})
        clusters.update({answer.item: answer.cluster for answer in scored})
    if not clusters:
        return NOTHING
    by_seed = np.array([[seed.get(item, np.nan) for item in clusters] for seed in scores])
    (found,) = intervals(*by_cluster(over_seeds(by_seed)[0][None], list(clusters.values())))
    return found.value, found.low, found.high


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# -- tables ------------------------------------------------------------------------------------


def _flat(entry: Entry) -> Entry:
    """One level, for CSV."""
    out = {name: value for name, value in entry.items() if name not in ("figures", "kinds")}
    out["options"] = json.dumps(entry["options"], sort_keys=True)
    out.update(entry["figures"])
    out.update({f"kind:{kind}": value for kind, value in entry["kinds"].items()})
    return out


def cells(summary: Entry, figures: bool = True) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table as text, a row a method and retention.

    Args:
        figures: with the suite's figures beside the headline.
    """
    entries = summary["methods"]
    names = list(entries[0]["figures"]) if figures else []
    points = suite_class(summary["suite"]).points  # as they are, shares in percent
    scale = {
        name: 1 if name.split("/")[0] in points else 100 for name in [*names, summary["metric"]]
    }
    whole = scale[summary["metric"]]
    header = ["method", "retention", summary["metric"], "95 %", "of full, %"]
    hard = ["hard", "hard, 95 %"] if summary.get("hard") else []
    lines = []
    for entry in entries:
        lines.append(
            [
                _label(entry),
                share_label(entry["retention"]),
                _text(entry["value"], whole),
                _range(entry["low"], entry["high"], whole),
                _text(entry["share"], 100),
                *(_hard(entry) if hard else ()),
                *(_text(entry["figures"].get(name), scale[name]) for name in names),
                _text(entry["tokens"], 1, 0),
                str(entry["failed"]),
            ]
        )
    return [*header, *hard, *names, "tokens", "failed"], lines


def _hard(entry: Entry) -> list[str]:
    """The score on hard questions, and its interval."""
    return [_text(entry["hard"], 100), _range(entry["hard_low"], entry["hard_high"], 100)]


def _range(low: float | None, high: float | None, scale: float) -> str:
    return "" if low is None else f"{_text(low, scale)} - {_text(high, scale)}"


def _label(entry: Entry) -> str:
    options = ", ".join(f"{name}={value}" for name, value in entry["options"].items())
    seeds = f"{entry['seeds']} seeds" if entry["seeds"] > 1 else ""
    notes = "; ".join(note for note in (options, seeds) if note)
    return f"{entry['method']} ({notes})" if notes else entry["method"]


def _text(value: float | None, scale: float, digits: int = 1) -> str:
    return "" if value is None else f"{scale * value:.{digits}f}"


def markdown(summary: Entry) -> str:
    """The table as Markdown."""
    return table(*cells(summary))
