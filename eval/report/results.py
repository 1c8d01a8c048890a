"""From answers to figures: accuracies with intervals, what was kept of the full model, comparisons."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from vtc.errors import VTCError
from vtc.eval.accuracy.hard import hard_items
from vtc.eval.common import statistics
from vtc.eval.common.records import Answer
from vtc.eval.common.settings import FULL, Setting
from vtc.eval.common.statistics import Comparison, Interval
from vtc.eval.common.timing import Ratio

NAN = Interval(math.nan, math.nan, math.nan)
#: what every method should beat, as far as it was measured
BASELINES = ("random", "uniform", "resize")
LINES = 8  # that a figure holds at once


@dataclass(frozen=True)
class Entry:
    """A method at a retention: one row of the table, all seeds of a method that draws together.

    Attributes:
        label: the method as the page calls it, with its options where that is needed to tell it
            from another.
        method, retention, options: of the setting.
        seeds: those that were measured.
        accuracy: mean score with its interval.
        share: of the full model's accuracy, on the questions that both answered.
        spread: standard deviation between seeds, nan without several.
        answered, failed, planned: rows of all seeds; `planned` is what a whole run has.
        tokens: mean visual tokens that the language model gets.
        kept: mean share of the patch tokens that was kept.
        kinds: question type -> mean score and number of questions.
        hard: mean score on the questions that are hard at this retention (`eval/accuracy/hard.py`),
            nan where none are known.
        prefill: time to the first token against the uncompressed model; None when not measured.
        front: whether no other entry is at least as right at no higher cost (see `cost`).
    """

    label: str
    method: str
    retention: float | None
    options: Mapping[str, object]
    seeds: tuple[int, ...]
    accuracy: Interval
    share: Interval
    spread: float
    answered: int
    failed: int
    planned: int
    tokens: float
    kept: float
    kinds: Mapping[str, tuple[float, int]]
    hard: Interval = NAN
    prefill: Ratio | None = None
    front: bool = False

    @property
    def full(self) -> bool:
        """Whether this is the uncompressed model."""
        return self.method == FULL.method

    @property
    def budget(self) -> str:
        """What was asked for, such as "25 %"."""
        return budget(self.retention)

    @property
    def name(self) -> str:
        """Unique in a report."""
        return self.label if self.full else f"{self.label} {self.budget}"

    @property
    def partial(self) -> bool:
        """Whether rows are missing or failed."""
        return self.answered < self.planned


@dataclass(frozen=True)
class Results:
    """All that a report shows.

    Attributes:
        entries: the uncompressed model first if it was measured, then by method and retention.
        kinds: question types, most frequent first.
        questions, clusters: that were answered at all.
        against_full, against_baseline, others: comparisons; all of them are one family.
        baselines: labels of the methods that the others are held against, second in a comparison.
        hard: retention -> number of hard questions.
        timed: whether `Entry.prefill` holds times of an efficiency run.
        scores: `[settings of one seed, questions]` by setting key, for pictures.
        items, kind_of, clusters_of: id, type and cluster of the questions, in the order of `scores`.
    """

    entries: list[Entry]
    kinds: list[str]
    questions: int
    clusters: int
    against_full: list[tuple[Entry, Comparison]]
    against_baseline: list[tuple[Entry, Comparison]]
    others: list[tuple[Entry, Comparison]]
    baselines: list[str]
    hard: dict[float, int]
    timed: bool
    scores: dict[str, np.ndarray] = field(repr=False)
    items: list[str] = field(repr=False)
    kind_of: list[str] = field(repr=False)
    clusters_of: list[str] = field(repr=False)

    @property
    def full(self) -> Entry | None:
        """The uncompressed model, if it was measured."""
        return next((entry for entry in self.entries if entry.full), None)

    @property
    def labels(self) -> list[str]:
        """Methods, the uncompressed model left out."""
        return list(dict.fromkeys(entry.label for entry in self.entries if not entry.full))

    @property
    def retentions(self) -> list[float | None]:
        """Retentions from much to little, a method's own last."""
        found = {entry.retention for entry in self.entries if not entry.full}
        return sorted(found, key=lambda share: (share is None, -(share or 0)))

    @cached_property
    def shown(self) -> list[str]:
        """The methods that figures start with: all, or of many the baselines and those that are best
        on average over the retentions, `LINES` together, in the order of `labels`."""
        if len(self.labels) <= LINES:
            return self.labels
        mean = {
            label: _mean(
                [
                    entry.accuracy.value
                    for entry in self.entries
                    if entry.label == label and entry.retention is not None
                ]
            )
            for label in self.labels
        }
        ranked = sorted(self.labels, key=lambda label: (math.isnan(mean[label]), -mean[label]))
        first = list(dict.fromkeys([*self.baselines, *ranked]))[:LINES]
        return [label for label in self.labels if label in first]

    def against(self, baseline: str) -> list[tuple[Entry, Comparison]]:
        """Comparisons with a baseline."""
        return [pair for pair in self.against_baseline if pair[1].second == baseline]

    def at(self, retention: float | None) -> list[Entry]:
        """Compressed entries at a retention."""
        return [e for e in self.entries if not e.full and e.retention == retention]


def budget(retention: float | None) -> str:
    """A retention in words."""
    return "own count" if retention is None else f"{100 * retention:g} %"


def analyse(
    answers: Sequence[Answer],
    settings: Sequence[Setting],
    planned: int,
    times: Mapping[str, Ratio] | None = None,
    baselines: Sequence[str] = BASELINES,
    resamples: int = statistics.RESAMPLES,
) -> Results:
    """Work out everything that the page shows.

    Args:
        answers: of all runs, each setting and item once.
        settings: what the runs were to measure; those with coarse pictures tell hard questions and are
            no entries.
        planned: questions of the suite.
        times: `group_key` -> time to the first token as a multiple of the full model's.
        baselines: labels of methods that the others are held against; those not measured are left out.
        resamples: drawn sets of clusters.

    Raises:
        VTCError: nothing was answered, or an answer belongs to no setting.
    """
    settings = list({setting.key: setting for setting in settings}.values())
    by_setting: dict[str, list[Answer]] = {setting.key: [] for setting in settings}
    for answer in answers:
        if answer.setting not in by_setting:
            raise VTCError(
                f"answers: setting {answer.setting!r} is not among the settings of the run"
            )
        by_setting[answer.setting].append(answer)
    questions = {answer.item: answer for answer in answers if answer.score is not None}
    if not questions:
        raise VTCError("answers: no question was answered, there is nothing to report")
    items = sorted(questions)
    place = {item: index for index, item in enumerate(items)}
    clusters = [questions[item].cluster or item for item in items]
    kinds = _by_frequency([questions[item].kind for item in items])
    scores = {}
    for key, rows in by_setting.items():
        scores[key] = np.full(len(items), np.nan)
        for answer in rows:
            if answer.score is not None:
                scores[key][place[answer.item]] = answer.score
    groups = _groups([setting for setting in settings if setting.pixels is None])
    means, spreads = {}, {}
    for label, members in groups.items():
        stacked = np.array([scores[setting.key] for setting in members])
        means[label], spreads[label] = statistics.over_seeds(stacked)
    matrix = np.array(list(means.values()))
    accuracy = statistics.intervals(*statistics.by_cluster(matrix, clusters), resamples=resamples)
    share = _shares(list(groups.values()), matrix, clusters, resamples)
    kind_of = np.array([questions[item].kind for item in items])
    hard = hard_items(settings, by_setting)
    over_hard = _over_hard(list(groups), matrix, hard, items, clusters, resamples)
    entries = []
    for row, (group, members) in enumerate(groups.items()):
        first = members[0]
        rows = [answer for setting in members for answer in by_setting[setting.key]]
        done = [answer for answer in rows if answer.score is not None]
        entries.append(
            Entry(
                label=group[0],
                method=first.method,
                retention=first.retention,
                options=first.options,
                seeds=tuple(setting.seed for setting in members),
                accuracy=accuracy[row],
                share=share[row],
                spread=spreads[group],
                answered=len(done),
                failed=len(rows) - len(done),
                planned=planned * len(members),
                tokens=_mean([answer.tokens for answer in done]),
                kept=_kept(first, done),
                kinds={kind: _kind(matrix[row], kind_of == kind) for kind in kinds},
                hard=over_hard[row],
                prefill=None if times is None else times.get(group_key(first)),
            )
        )
    timed = any(entry.prefill is not None for entry in entries)
    entries = _with_front(entries, timed)
    known = {entry.label for entry in entries}
    baselines = [label for label in baselines if label in known]
    found = _comparisons(entries, matrix, clusters, baselines, resamples)
    return Results(
        sorted(entries, key=_order),
        kinds,
        len(items),
        len(set(clusters)),
        *found,
        baselines,
        {share: len(those) for share, those in hard.items()},
        timed,
        scores,
        items,
        [questions[item].kind for item in items],
        clusters,
    )


def group_key(setting: Setting) -> str:
    """The same for all seeds of a setting."""
    return Setting(setting.method, setting.retention, 0, setting.options).key


def _groups(settings: Sequence[Setting]) -> dict[tuple[str, float | None], list[Setting]]:
    """Settings that differ in their seed alone, by label and retention."""
    variants: dict[str, set[str]] = {}
    for setting in settings:
        variants.setdefault(setting.method, set()).add(_options(setting))
    groups: dict[tuple[str, float | None], list[Setting]] = {}
    for setting in settings:
        label = setting.method
        if label == FULL.method:
            label = "full model"
        elif len(variants[setting.method]) > 1 and setting.options:
            label += f" ({_options(setting)})"
        groups.setdefault((label, setting.retention), []).append(setting)
    return groups


def _options(setting: Setting) -> str:
    return ", ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in sorted(setting.options.items())
    )


def _order(entry: Entry) -> tuple[bool, str, bool, float]:
    share = entry.retention
    return (not entry.full, entry.label, share is None, -(share or 0))


def _by_frequency(kinds: Sequence[str]) -> list[str]:
    names, counts = np.unique(np.array(kinds, dtype=str), return_counts=True)
    order = sorted(range(len(names)), key=lambda i: (-counts[i], names[i]))
    return [str(names[index]) for index in order]


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _kept(setting: Setting, answers: Sequence[Answer]) -> float:
    if setting.method == FULL.method:
        return 1.0
    kept = [
        answer.patches / answer.patches_full
        for answer in answers
        if answer.patches is not None and answer.patches_full
    ]
    return _mean(kept)


def _kind(scores: np.ndarray, members: np.ndarray) -> tuple[float, int]:
    found = scores[members]
    found = found[~np.isnan(found)]
    return (float(found.mean()), len(found)) if len(found) else (math.nan, 0)


def _shares(
    groups: Sequence[Sequence[Setting]],
    matrix: np.ndarray,
    clusters: Sequence[str],
    resamples: int,
) -> list[Interval]:
    """Score of each group over the score of the full model on the same questions."""
    full = next((row for row, group in enumerate(groups) if group[0].method == FULL.method), None)
    if full is None:
        return [NAN] * len(groups)
    common = ~np.isnan(matrix) & ~np.isnan(matrix[full])
    sums, _ = statistics.by_cluster(np.where(common, matrix, np.nan), clusters)
    of, _ = statistics.by_cluster(np.where(common, matrix[full], np.nan), clusters)
    found = statistics.intervals(sums, of, bounds=None, resamples=resamples)
    found[full] = Interval(1.0, 1.0, 1.0)
    return found


def _over_hard(
    groups: Sequence[tuple[str, float | None]],
    matrix: np.ndarray,
    hard: Mapping[float, Sequence[str]],
    items: Sequence[str],
    clusters: Sequence[str],
    resamples: int,
) -> list[Interval]:
    """The mean score of each group on the hard questions of its retention."""
    masks = {share: np.isin(items, list(those)) for share, those in hard.items() if those}
    found = []
    for (_, retention), scores in zip(groups, matrix, strict=True):
        mask = masks.get(-1.0 if retention is None else retention)
        if mask is None or np.isnan(scores[mask]).all():
            found.append(NAN)
            continue
        own = [cluster for cluster, asked in zip(clusters, mask, strict=True) if asked]
        sums, counts = statistics.by_cluster(scores[mask][None], own)
        found += statistics.intervals(sums, counts, resamples=resamples)
    return found


def _with_front(entries: Sequence[Entry], timed: bool) -> list[Entry]:
    """Mark the Pareto front of accuracy against `cost`."""
    points = [(cost(entry, timed), -entry.accuracy.value) for entry in entries]

    def beaten(mine: tuple[float, float]) -> bool:
        return any(
            other != mine and other[0] <= mine[0] and other[1] <= mine[1] for other in points
        )

    return [
        replace(entry, front=not any(map(math.isnan, point)) and not beaten(point))
        for entry, point in zip(entries, points, strict=True)
    ]


def cost(entry: Entry, timed: bool) -> float:
    """What accuracy is held against: time to the first token, or visual tokens without a run that
    timed them."""
    if not timed:
        return entry.tokens
    if entry.full:
        return 1.0
    return math.nan if entry.prefill is None else entry.prefill.median


def _comparisons(
    entries: Sequence[Entry],
    matrix: np.ndarray,
    clusters: Sequence[str],
    baselines: Sequence[str],
    resamples: int,
) -> tuple[list, list, list]:
    """Against the full model, against the baselines, and all other pairs at the same retention."""
    place = {label: -rank for rank, label in enumerate(reversed(baselines), 1)}
    full = next((row for row, entry in enumerate(entries) if entry.full), None)
    rows = [row for row, entry in enumerate(entries) if not entry.full]
    pairs = [(row, full) for row in rows] if full is not None else []
    for index, one in enumerate(rows):
        for two in rows[index + 1 :]:
            if entries[one].retention == entries[two].retention:
                # the method that is looked at first, the baseline second, the plainest one last
                swap = place.get(entries[one].label, 0) < place.get(entries[two].label, 0)
                pairs.append((two, one) if swap else (one, two))
    labels = ["the full model" if entry.full else entry.label for entry in entries]
    asked = [p for p in pairs if not np.isnan(matrix[p[0]] - matrix[p[1]]).all()]
    found = statistics.compare(matrix, clusters, labels, asked, resamples)
    out: tuple[list, list, list] = ([], [], [])
    for (one, two), comparison in zip(asked, found, strict=True):
        part = 0 if two == full else 1 if entries[two].label in place else 2
        out[part].append((entries[one], comparison))
    for some in out:
        some.sort(key=lambda pair: (_order(pair[0])[2:], pair[1].first, pair[1].second))
    return out
