"""The files of a report: the page, its figures as PNG, its numbers as CSV."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vtc.eval import pages
from vtc.eval.common.statistics import Interval, points, sentence, signed
from vtc.eval.report import charts, words
from vtc.eval.report.kept import Example
from vtc.eval.report.results import Results, budget
from vtc.eval.report.runs import Collected, Recorded

PAGE = "report.html"
MANY = 20  # failed rows that are listed one by one


def write(
    collected: Collected,
    results: Results,
    folder: Path,
    subjects: Sequence[Example] = (),
    without: str = "",
    title: str | None = None,
) -> list[Path]:
    """Write everything into `folder`.

    Args:
        subjects: questions with pictures of kept tokens.
        without: why there are none.
        title: heading of the page; made from model and suite when not given.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metric = collected.metric
    charts.png(charts.against_retention(results, metric), folder / "accuracy_retention.png")
    cost = folder / f"accuracy_{'time' if results.timed else 'tokens'}.png"
    charts.png(charts.against_cost(results, metric), cost)
    files = [folder / PAGE, folder / "accuracy_retention.png", cost]
    if len(results.kinds) > 1:
        charts.png(charts.heat(results, metric), folder / "question_types.png")
        files.append(folder / "question_types.png")
    tables = {
        "table.csv": table(results),
        "question_types.csv": question_types(results),
        "comparisons.csv": comparisons(results),
    }
    for name, rows in tables.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        files.append(folder / name)
    text = page(collected, results, subjects, without, title)
    (folder / PAGE).write_text(text, encoding="utf-8")
    return files


# -- tables ------------------------------------------------------------------------------------


def table(results: Results) -> Iterable[list[Any]]:
    """Header, and a row an entry; shares from 0 to 1, empty where there is no figure."""
    yield (
        "method retention seeds answered failed planned accuracy accuracy_low accuracy_high "
        "deviation_between_seeds share_of_full share_low share_high visual_tokens patches_kept "
        "first_token_ratio first_token_low first_token_high pareto_front hard hard_low hard_high"
    ).split()
    for entry in results.entries:
        time = entry.prefill
        yield [
            entry.label,
            entry.budget if entry.retention is None else entry.retention,
            len(entry.seeds),
            entry.answered,
            entry.failed,
            entry.planned,
            *_cells(entry.accuracy),
            _cell(entry.spread),
            *_cells(entry.share),
            _cell(entry.tokens),
            _cell(entry.kept),
            *(("", "", "") if time is None else map(_cell, (time.median, time.low, time.high))),
            "yes" if entry.front else "no",
            *_cells(entry.hard),
        ]


def question_types(results: Results) -> Iterable[list[Any]]:
    """Header, and a row an entry and question type."""
    yield ["method", "retention", "type", "accuracy", "questions"]
    for entry in results.entries:
        for kind, (value, count) in entry.kinds.items():
            share = entry.budget if entry.retention is None else entry.retention
            yield [entry.label, share, kind, _cell(value), count]


def comparisons(results: Results) -> Iterable[list[Any]]:
    """Header, and a row a comparison."""
    yield ("retention first second difference low high p p_holm verdict questions clusters").split()
    for entry, found in _all(results):
        share = entry.budget if entry.retention is None else entry.retention
        yield [
            share,
            found.first,
            found.second,
            *_cells(found.difference),
            _cell(found.p),
            _cell(found.adjusted),
            found.verdict,
            found.questions,
            found.clusters,
        ]


def _all(results: Results) -> list[Any]:
    return [*results.against_full, *results.against_baseline, *results.others]


def _cells(interval: Interval) -> list[str]:
    return [_cell(interval.value), _cell(interval.low), _cell(interval.high)]


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


# -- page --------------------------------------------------------------------------------------


def page(
    collected: Collected,
    results: Results,
    subjects: Sequence[Example] = (),
    without: str = "",
    title: str | None = None,
) -> str:
    """The page as text; see `write`."""
    from markupsafe import Markup

    suite, model = collected.facts["suite"], collected.facts["model"]
    metric = collected.metric
    sections = [
        ("short", "In short"),
        ("retention", "Accuracy and retention"),
        ("cost", "Accuracy and time" if results.timed else "Accuracy and tokens"),
        ("table", "Table"),
        *([("hard", "Hard questions")] if any(results.hard.values()) else []),
        *([("types", "Question types")] if len(results.kinds) > 1 else []),
        ("differences", "Differences"),
        ("disagree", "Where methods disagree"),
        ("failed", "Failed rows"),
        ("runs", "Runs"),
    ]
    off = {number for number, name in enumerate(results.labels) if name not in results.shown}
    figures = {}
    for name, draw in (("retention", charts.against_retention), ("cost", charts.against_cost)):
        for size in ("wide", "narrow"):
            figure = draw(results, metric, charts.WIDE if size == "wide" else charts.NARROW, True)
            label = f"{dict(sections)[name]}: the numbers are in the table below"
            figures[name, size] = Markup(charts.svg(figure, f"{name}-{size}", label, off))
    return pages.render(
        "report.html",
        title=title or f"Visual-token compression: model {model['name']}, suite {suite['name']}",
        lead=(
            f"{results.questions:,} questions about {results.clusters:,} images, "
            f"{len(results.labels)} methods, {len(results.retentions)} retentions."
        ),
        sections=sections,
        scripts=["sort.js", "filter.js", "choose.js"],
        metric=metric,
        results=results,
        figures=figures,
        choices=[
            (number, label, Markup(charts.swatch(results, label)), label in results.shown)
            for number, label in enumerate(results.labels)
        ],
        versus={baseline: _versus(results, baseline) for baseline in results.baselines},
        summary=words.summary(results),
        cautions=[*collected.warnings, *words.cautions(results)],
        family=len(_all(results)),
        subjects=subjects,
        without=without,
        failures=failures(collected),
        runs=[facts(run) for run in _runs(collected)],
        shade=lambda entry, kind: _shade(results, entry, kind),
        budget=budget,
        sentence=sentence,
        percent=_percent,
        number=_number,
        signed=signed,
        points=points,
        image=pages.data_uri,
        nan=math.isnan,
    )


def _versus(results: Results, baseline: str) -> list[tuple[str, list[Any]]]:
    """Each method against a baseline: label, and its comparison at every retention or None."""
    found = {(c.first, entry.retention): c for entry, c in results.against(baseline)}
    rows = [
        (label, [found.get((label, retention)) for retention in results.retentions])
        for label in results.labels
    ]
    return [(label, cells) for label, cells in rows if any(cells)]


def _runs(collected: Collected) -> list[Recorded]:
    efficiency = [] if collected.efficiency is None else [collected.efficiency]
    return [*collected.accuracy, *efficiency]


def _shade(results: Results, entry: Any, kind: str) -> str:
    """Background of a cell of the heat map."""
    colour, alpha = charts.shade(results, entry, kind)
    name = "worse" if colour == charts.WORSE else "better"
    return f"rgba(var(--{name}), {alpha:g})"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else points(share)


def _number(value: float, digits: int = 0) -> str:
    return "" if math.isnan(value) else f"{value:,.{digits}f}"


def failures(collected: Collected) -> dict[str, Any]:
    """Rows without a score: how many for which reason, and the first ones."""
    rows = [answer for answer in collected.answers if answer.score is None]
    rows.sort(key=lambda answer: (answer.setting, answer.item))
    reasons = Counter(answer.error or "no reason was recorded" for answer in rows)
    return {"count": len(rows), "reasons": reasons.most_common(), "rows": rows[:MANY]}


def facts(run: Recorded) -> dict[str, Any]:
    """What the page says about a run: name, kind, the commands that made it, other entries."""
    known = run.facts
    sessions = known.get("sessions", [])
    commands = [session["command"] for session in sessions if session.get("command")]
    commands += [known["command"]] if isinstance(known.get("command"), str) else []
    rest = {
        name: value
        for name, value in known.items()
        if name not in ("kind", "settings", "sessions", "command")
    }
    machines = [
        {
            name: value
            for name, value in session.items()
            if name not in ("command", "code") and value is not None
        }
        for session in sessions
    ]
    settings = [
        (setting.key, _fields(entry))
        for setting, entry in zip(run.settings, known["settings"], strict=True)
    ]
    return {
        "name": run.name,
        "kind": known["kind"],
        "commands": list(dict.fromkeys(commands)),
        "facts": [*flat(rest), *flat({"session": machines})],
        "settings": settings,
    }


def _fields(entry: Any) -> str:
    fields = {k: v for k, v in (entry.get("fields") or entry.get("options") or {}).items()}
    return ", ".join(f"{name} = {value}" for name, value in sorted(fields.items()))


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested entries as `(name with dots, text)`."""
    if isinstance(value, dict):
        return [
            pair
            for key, entry in value.items()
            for pair in flat(entry, f"{name}.{key}" if name else str(key))
        ]
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return [pair for i, entry in enumerate(value, 1) for pair in flat(entry, f"{name} {i}")]
    if isinstance(value, list):
        value = ", ".join(str(entry) for entry in value)
    return [] if value is None or value == "" else [(name, str(value))]
