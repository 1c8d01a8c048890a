"""What the figures say, in sentences that follow from them."""

from __future__ import annotations

from vtc.eval.common.statistics import FEW, Comparison, points
from vtc.eval.report.results import Entry, Results, budget

NAMES = 6  # in a sentence
Found = list[tuple[Entry, Comparison]]


def summary(results: Results) -> list[str]:
    """The page's first lines: the full model, then each retention."""
    out = []
    if results.full is not None:
        accuracy = results.full.accuracy
        out.append(
            f"The full model scores {points(accuracy.value)} % "
            f"[{points(accuracy.low)}, {points(accuracy.high)}]."
        )
    for retention in results.retentions:
        entries = [e for e in results.at(retention) if e.answered]
        if entries:
            out.append(" ".join(_retention(results, retention, entries)))
    return out


def _retention(results: Results, retention: float | None, entries: list[Entry]) -> list[str]:
    best = max(entries, key=lambda entry: entry.accuracy.value)
    share = f", {points(best.share.value)} % of the full model's" if results.full else ""
    where = f"At {budget(retention)}"
    if len(entries) == 1:
        return [f"{where} {best.label} scores {points(best.accuracy.value)} %{share}."]
    said = [f"{where} {best.label} scores highest: {points(best.accuracy.value)} %{share}."]
    level = sorted(
        other
        for first, second, verdict in _verdicts(results, retention)
        for mine, other in ((first, second), (second, first))
        if mine == best.label and verdict in ("none", "unclear") and other != "the full model"
    )
    if level:
        others = len(entries) - 1
        said.append(f"No firm difference between it and {_list(level, others)}.")
    for baseline in results.baselines:
        said += _against(results, baseline, retention)
    return said


def _against(results: Results, baseline: str, retention: float | None) -> list[str]:
    """Which methods do not beat a baseline."""
    mine = {
        comparison.first: comparison.verdict
        for entry, comparison in results.against(baseline)
        if entry.retention == retention
    }
    if mine and all(verdict == "better" for verdict in mine.values()):
        return [f"Every other method is better than {baseline}."]
    said = []
    for verdicts, text in (
        (("worse",), f"Worse than {baseline}"),
        (("none", "unclear"), f"Not shown to be better than {baseline}"),
    ):
        names = sorted(name for name, verdict in mine.items() if verdict in verdicts)
        if names:
            said.append(f"{text}: {_list(names, len(mine))}.")
    return said


def _verdicts(results: Results, retention: float | None) -> list[tuple[str, str, str]]:
    found = [*results.against_baseline, *results.others]
    return [(c.first, c.second, c.verdict) for e, c in found if e.retention == retention]


def _list(names: list[str], all_of: int) -> str:
    """Names in a sentence; "any other method" when they are all there are, their number when they are
    more than a sentence holds."""
    if len(names) == all_of > 1:
        return "any other method"
    if len(names) > NAMES:
        return f"{len(names)} of {all_of} methods"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _untimed(results: Results) -> list[str]:
    """Methods that were not timed at all, and single entries of the others."""
    names = []
    for label in results.labels:
        mine = [entry for entry in results.entries if entry.label == label]
        missing = [entry.name for entry in mine if entry.prefill is None]
        names += [label] if len(missing) == len(mine) else missing
    return names


def cautions(results: Results) -> list[str]:
    """What keeps a reader from taking the page at its word."""
    out = []
    partial = [entry for entry in results.entries if entry.partial]
    if partial:
        rows = sum(entry.planned - entry.answered for entry in partial)
        failed = sum(entry.failed for entry in partial)
        out.append(
            f"The runs are not complete: {rows:,} rows are missing under {len(partial)} of "
            f"{len(results.entries)} settings, {failed:,} of them failed. Accuracies are over the "
            "rows that were answered, differences over questions that both sides answered."
        )
    untimed = _untimed(results)
    if results.timed and untimed:
        named = ", ".join(untimed[:NAMES])
        rest = f" and {len(untimed) - NAMES} more; the table says which" if untimed[NAMES:] else ""
        out.append(f"Not timed, so not in the figure of accuracy and time: {named}{rest}.")
    if results.clusters < FEW:
        out.append(
            f"Only {results.clusters} independent images: with fewer than {FEW} the intervals are "
            "too narrow."
        )
    if results.full is None:
        out.append(
            "The full model was not measured: no share of its accuracy can be told, and the heat "
            "maps are not shaded."
        )
    return out
