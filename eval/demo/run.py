"""The demo: methods and retentions on the reference VLM, in minutes on a laptop's CPU.

Accuracy on a sample of test scenes, patch tokens, prefill time against the uncompressed model in
the same run, and pictures of what was kept (see `demo_pictures`). All through the public API.
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
from vtc.eval.common.answers import Batch, Score, answer, batches, score
from vtc.eval.common.timing import Ratio, interleaved, ratio, stopwatch
from vtc.methods.base import Method

METHODS = (
    "random",
    "uniform",
    "pool",
    "globalcom2",
    "token_correlation",
    "recoverable",
    "tokenflex",
)
RETENTIONS = (0.5, 0.25, 0.1)
SEED = 20  # of the sample of test scenes
GROUPS = ("reading", "attribute", "exist", "count", "position")


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        method: name.
        retention: share of patch tokens asked for, None for the method's own count.
    """

    method: str
    retention: float | None

    @property
    def name(self) -> str:
        """For keys and file names."""
        share = "own" if self.retention is None else f"{self.retention:g}"
        return f"{self.method}_{share}"

    @property
    def label(self) -> str:
        """What the table says under retention."""
        return "its own" if self.retention is None else f"{self.retention:.0%}"


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
    rows = [Setting("none", 1.0)]
    for name in methods:
        if name == "none":
            continue
        for retention in retentions:
            vtc.create_method(name, retention=retention)
            rows.append(Setting(name, retention))
        if vtc.create_method(name).adaptive:
            rows.append(Setting(name, None))
    return list(dict.fromkeys(rows))


def build(setting: Setting, model: Any) -> Method:
    """The method of a setting, with the options that the model brings."""
    options = vtc.model_defaults(model).get(setting.method, {})
    return vtc.create_method(setting.method, retention=setting.retention, **options)


def measure(
    model: Any,
    processor: Any,
    chosen: Sequence[Setting],
    scenes: int,
    questions: int,
    rounds: int,
    seed: int = SEED,
    step: Callable[[], Any] = lambda: None,
) -> Demo:
    """Accuracy, tokens and prefill times.

    Args:
        chosen: from `settings`.
        scenes: test scenes in the sample.
        questions: most questions about a scene.
        rounds: timed rounds, each with another scene.
        step: called `steps(...)` times.

    Raises:
        VTCError: the sample is empty.
    """
    from vtc.eval import reference
    from vtc.eval.reference.questions import majority

    pictures = list(reference.scenes("test", scenes, seed, questions=questions))
    sample = batches(processor, pictures, reference.prompt)
    every = [question for batch in sample for question in batch.questions]
    if not every:
        raise VTCError(f"scenes: got {scenes}, which gives no questions")
    methods = {setting.name: build(setting, model) for setting in chosen}
    rows, notes = [], []
    for setting in chosen:
        row, said = _accuracy(model, processor, setting, methods[setting.name], sample, step)
        rows.append(row)
        notes += [f"{setting.method}: {note}" for note in said]
    times = _times(model, processor, chosen, methods, pictures, rounds, step)
    for row in rows[1:]:
        row.prefill = ratio(times[row.setting.name], times[rows[0].setting.name])
    guess = majority(every)[0]["all"]
    return Demo(rows, scenes, len(every), seed, guess, rounds, list(dict.fromkeys(notes)))


def steps(chosen: Sequence[Setting], scenes: int, rounds: int) -> int:
    """How often `measure` calls its `step`."""
    return len(chosen) * (scenes + rounds + 1)


def _accuracy(
    model: Any,
    processor: Any,
    setting: Setting,
    method: Method,
    sample: Sequence[Batch],
    step: Callable[[], Any],
) -> tuple[Row, list[str]]:
    from vtc.eval.reference import is_correct

    right: list[bool] = []
    with vtc.compress(model, method, processor=processor) as run:
        for batch in sample:
            said = answer(model, processor, batch.inputs)
            right += [
                is_correct(text, question.answer)
                for text, question in zip(said, batch.questions, strict=True)
            ]
            step()
        reports = list(run.reports)
    images = [image for report in reports for image in report.images]
    groups = [question.group for batch in sample for question in batch.questions]
    scenes = [scene for batch in sample for scene in batch.scenes]
    row = Row(
        setting,
        score(right, scenes, groups),
        sum(image.patches_after for image in images) / len(images),
        sum(image.patches_before for image in images) / len(images),
    )
    return row, [note for report in reports[:1] for note in report.notes]


def _times(
    model: Any,
    processor: Any,
    chosen: Sequence[Setting],
    methods: dict[str, Method],
    scenes: Sequence[Any],
    rounds: int,
    step: Callable[[], Any],
) -> dict[str, list[float]]:
    """Seconds of one prompt's prefill, by setting; every round takes another scene.

    Every prompt ends in another number, always of three digits: a text encoder that remembers what
    it has read cannot save itself the work that a new question costs.
    """
    import torch

    from vtc.eval.reference import prompt

    turn = {setting.name: 0 for setting in chosen}
    held: dict[str, Any] = {}  # text encoders, which would be loaded anew for every prompt
    serial = itertools.count()

    def prefill(setting: Setting) -> float:
        scene = scenes[turn[setting.name] % len(scenes)]
        turn[setting.name] += 1
        text = prompt(f"what is in the image ? {next(serial) % 1000:03d}")
        inputs = processor(images=[scene.image], text=text, return_tensors="pt")

        def forward() -> None:
            with torch.inference_mode():
                model(**inputs, use_cache=True, logits_to_keep=1)

        if setting == chosen[0]:  # the plain model, nothing attached
            return stopwatch(forward)
        with vtc.compress(model, methods[setting.name], processor=processor) as run:
            held[setting.name] = run.text_encoder
            return stopwatch(forward)

    cases = {setting.name: functools.partial(prefill, setting) for setting in chosen}
    return interleaved(cases, rounds, step)


# -- tables ------------------------------------------------------------------------------------


def cells(demo: Demo) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table as text."""
    groups = [name for name in GROUPS if any(name in row.score.groups for row in demo.rows)]
    header = ["method", "retention", "accuracy", *groups, "patch tokens", "prefill time"]
    lines = []
    for row in demo.rows:
        by_group = row.score.groups
        lines.append(
            [
                row.setting.method,
                row.setting.label,
                f"{100 * row.score.accuracy:.1f} ± {100 * row.score.error:.1f}",
                *(f"{100 * by_group[g]:.0f}" if g in by_group else "-" for g in groups),
                f"{row.kept:.0f} of {row.patches:.0f}",
                "1" if row.prefill is None else str(row.prefill),
            ]
        )
    return header, lines


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
    header, lines = cells(demo)
    rows = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *lines]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return table + "\n\n" + "\n".join(f"- {line}" for line in caption(demo)) + "\n"


def to_dict(demo: Demo) -> dict[str, Any]:
    """Plain values for JSON."""
    return dataclasses.asdict(demo)


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
