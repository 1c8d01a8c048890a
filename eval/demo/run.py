"""The demo: an accuracy run of methods and retentions on the reference VLM, with prefill times.

Accuracy on a sample of test scenes, patch tokens, and prefill time against the uncompressed model in
the same run; `pictures` shows what was kept.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vtc
from vtc.errors import VTCError
from vtc.eval.accuracy.runner import Runner
from vtc.eval.common.docs import table
from vtc.eval.common.loading import Loaded
from vtc.eval.common.records import Answer
from vtc.eval.common.settings import FULL, Setting, create
from vtc.eval.common.statistics import standard_error
from vtc.eval.common.timing import Ratio, interleaved, ratio, stopwatch
from vtc.eval.reference.questions import TYPES, Question, majority
from vtc.eval.suites import create_suite
from vtc.pictures import load_image
from vtc.registry import method_class

SEED = 20  # of the sample of test scenes
GROUPS = ("reading", "attribute", "exist", "count", "position")


@dataclass(frozen=True)
class Score:
    """Accuracy over questions.

    Attributes:
        accuracy: share of right answers.
        error: standard error of `accuracy`, whole scenes being the independent units.
        count: number of questions.
        groups: accuracy by group of question types.
    """

    accuracy: float
    error: float
    count: int
    groups: dict[str, float]


@dataclass
class Row:
    """What was measured for a setting.

    Attributes:
        setting: method and retention.
        score: accuracy on the sample.
        kept, patches: mean patch tokens of an image, left and before.
        prefill: time against the uncompressed model, None for that model itself.
    """

    setting: Setting
    score: Score
    kept: float
    patches: float
    prefill: Ratio | None = None


@dataclass
class Demo:
    """All results of a run.

    Attributes:
        rows: the uncompressed model first.
        scenes, questions: size of the sample.
        seed: of the sample.
        majority: accuracy of always giving the most frequent answer of a question's type.
        rounds: timed rounds.
        notes: what a reader should know.
    """

    rows: list[Row]
    scenes: int
    questions: int
    seed: int
    majority: float
    rounds: int
    notes: list[str]


def settings(methods: Sequence[str], retentions: Sequence[float]) -> list[Setting]:
    """The uncompressed model, then every method at every retention, and at its own count.

    Raises:
        VTCError: unknown method, or a retention out of range.
    """
    found = [FULL]
    for name in methods:
        if name != FULL.method:
            own = [None] if method_class(name).adaptive else []
            found += [Setting(name, retention) for retention in (*retentions, *own)]
    for setting in found:
        create(setting)
    return list({setting.key: setting for setting in found}.values())


class Remembering(Runner):
    """A runner that keeps what the processor made of each question: settings come one after another."""

    def _prepared(self, setting: Setting, rows: Sequence[Any]) -> Any:
        key = tuple(row.item.id for row in rows)
        if key not in self._remembered:
            self._remembered[key] = self.inputs(rows)
        return self._remembered[key]

    @functools.cached_property
    def _remembered(self) -> dict[tuple[str, ...], Any]:
        return {}


def runner(loaded: Loaded, chosen: Sequence[Setting], scenes: int, questions: int) -> Runner:
    """What asks the reference VLM about a sample of test scenes.

    Args:
        chosen: from `settings`.
        scenes: test scenes in the sample.
        questions: most questions about a scene.
    """
    suite = create_suite("reference", seed=SEED, scenes=scenes, questions=questions)
    defaults = vtc.model_defaults(loaded.model)
    methods = {setting.key: create(setting, defaults) for setting in chosen}
    return Remembering(loaded, suite, methods)


def measure(
    ask: Runner,
    chosen: Sequence[Setting],
    rounds: int,
    step: Callable[[], Any] = lambda: None,
    show: Callable[[Row], Any] = lambda row: None,
) -> Demo:
    """Accuracy, tokens and prefill times, one setting after another.

    Args:
        ask: from `runner`.
        chosen: its settings, the uncompressed model first.
        rounds: timed rounds, each with another scene.
        step: called `steps(...)` times.
        show: called with each row as soon as it is measured.

    Raises:
        VTCError: the sample is empty, or a question cannot be answered.
    """
    items, facts = ask.suite.items(), ask.suite.facts()
    if not items:
        raise VTCError(f"scenes: got {facts['scenes']}, which gives no questions")
    scenes = [list(some) for _, some in itertools.groupby(items, lambda item: item.cluster)]
    images = [load_image(scene[0].images[0]()) for scene in scenes]
    rows = []
    for setting in chosen:
        answers: list[Answer] = []
        for scene in scenes:
            for found in ask.ask(scene, [setting], ()):
                answers += found
            step()
        row = _row(ask, setting, answers)
        if setting != FULL:
            times = _times(ask, [FULL, setting], images, rounds, step)
            row.prefill = ratio(times[setting.key], times[FULL.key])
        rows.append(row)
        show(row)
    asked = [Question(i.prompt, i.answers[0], i.kind, TYPES[i.kind]) for i in items]
    # how many tokens are left stands in the table, and needs no note for every image
    notes = [
        f"{s.method}: {note}"
        for s in chosen
        for note in ask.notes[s.key]
        if not note.startswith("image")
    ]
    return Demo(
        rows,
        facts["scenes"],
        len(items),
        SEED,
        majority(asked)[0]["all"],
        rounds,
        list(dict.fromkeys(notes)),
    )


def steps(chosen: Sequence[Setting], scenes: int, rounds: int) -> int:
    """How often `measure` calls its `step`."""
    return len(chosen) * scenes + 2 * (len(chosen) - 1) * (rounds + 1)


def _row(ask: Runner, setting: Setting, answers: Sequence[Answer]) -> Row:
    failed = [answer for answer in answers if answer.error is not None]
    if failed:
        raise VTCError(f"demo: {setting.key} about {failed[0].item}: {failed[0].error}")
    figures = ask.suite.summary(answers)
    accuracy = figures.pop(ask.suite.metric)
    scores, scenes = [a.score or 0.0 for a in answers], [a.cluster for a in answers]
    return Row(
        setting,
        Score(
            accuracy, standard_error(scores, scenes), len(answers), dict(sorted(figures.items()))
        ),
        sum(a.patches or 0 for a in answers) / len(answers),
        sum(a.patches_full or 0 for a in answers) / len(answers),
    )


def _times(
    ask: Runner,
    chosen: Sequence[Setting],
    images: Sequence[Any],
    rounds: int,
    step: Callable[[], Any],
) -> dict[str, list[float]]:
    """Seconds of one prompt's prefill, by setting; every round takes another scene.

    Every prompt ends in another number, always of three digits: a text encoder that remembers what
    it has read cannot save itself the work that a new question costs.
    """
    import torch

    turn = {setting.key: 0 for setting in chosen}
    serial, loaded = itertools.count(), ask.loaded

    def prefill(setting: Setting) -> float:
        image = images[turn[setting.key] % len(images)]
        turn[setting.key] += 1
        text = f"what is in the image ? {next(serial) % 1000:03d}"
        inputs = loaded.inputs([image], text)

        def forward() -> None:
            with torch.inference_mode():
                loaded.model(**inputs, use_cache=True, logits_to_keep=1)

        if setting == FULL:  # the plain model, nothing attached
            return stopwatch(forward)
        with ask.compressed(setting):
            return stopwatch(forward)

    cases = {setting.key: functools.partial(prefill, setting) for setting in chosen}
    return interleaved(cases, rounds, step)


# -- tables ------------------------------------------------------------------------------------


HEADER = ("method", "retention", "accuracy", *GROUPS, "patch tokens", "prefill time")


def line(row: Row) -> list[str]:
    """A row as text, a cell for each of `HEADER`."""
    by_group = row.score.groups
    return [
        row.setting.method,
        row.setting.label,
        f"{100 * row.score.accuracy:.1f} ± {100 * row.score.error:.1f}",
        *(f"{100 * by_group[g]:.0f}" if g in by_group else "-" for g in GROUPS),
        f"{row.kept:.0f} of {row.patches:.0f}",
        "1" if row.prefill is None else str(row.prefill),
    ]


def cells(demo: Demo) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table as text."""
    return list(HEADER), [line(row) for row in demo.rows]


def caption(demo: Demo) -> list[str]:
    """How to read the table."""
    return [
        f"Sample scores: {demo.questions} questions about {demo.scenes} test scene(s), seed "
        f"{demo.seed}, of the embedded reference VLM; the model card has the scores on the "
        "whole test set. Accuracy in % by exact match, with its standard error over scenes.",
        "Giving the most frequent answer of a question's type would score "
        f"{100 * demo.majority:.1f} on this sample.",
        "Patch tokens: mean per image, thumbnail and crops together, newlines not counted.",
        "Prefill time: vision tower, selection and language model up to the first token, as a "
        "multiple of the uncompressed model's in the same run; median (quartiles) of "
        f"{demo.rounds} interleaved rounds of one prompt. A model this small on a CPU says little "
        "about a large one on a GPU.",
        *demo.notes,
    ]


def markdown(demo: Demo) -> str:
    """The table and its caption as Markdown."""
    return table(*cells(demo)) + "\n" + "".join(f"- {line}\n" for line in caption(demo))


def to_dict(demo: Demo) -> dict[str, Any]:
    """Plain values for JSON."""
    out = dataclasses.asdict(demo)
    for row in out["rows"]:
        row["setting"] = {name: row["setting"][name] for name in ("method", "retention")}
    return out


def save(demo: Demo, folder: Path) -> None:
    """Write `table.md`, `table.csv` and `table.json`."""
    (folder / "table.md").write_text(markdown(demo), encoding="utf-8")
    (folder / "table.json").write_text(json.dumps(to_dict(demo), indent=2) + "\n", encoding="utf-8")
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            "method retention accuracy accuracy_error questions".split()
            + [f"accuracy_{name}" for name in GROUPS]
            + "patch_tokens_kept patch_tokens prefill_ratio prefill_low prefill_high".split()
        )
        for row in demo.rows:
            time = row.prefill or Ratio(1.0, 1.0, 1.0, demo.rounds)
            writer.writerow(
                [
                    row.setting.method,
                    "" if row.setting.retention is None else row.setting.retention,
                    row.score.accuracy,
                    row.score.error,
                    row.score.count,
                    *(row.score.groups.get(name, "") for name in GROUPS),
                    row.kept,
                    row.patches,
                    time.median,
                    time.low,
                    time.high,
                ]
            )
