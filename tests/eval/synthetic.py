"""Run folders with known accuracies, for the report."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vtc.eval.common.records import Answer
from vtc.eval.common.settings import Setting, plan
from vtc.eval.common.timing import Ratio
from vtc.eval.efficiency.lines import Line, Measure
from vtc.registry import compared_methods

#: chance of a right answer, relative to the full model's, by method and retention
ABILITY = {
    ("globalcom2", 0.5): 0.99, ("globalcom2", 0.25): 0.95, ("globalcom2", 0.1): 0.82,
    ("random", 0.5): 0.93, ("random", 0.25): 0.82, ("random", 0.1): 0.63,
    ("uniform", 0.5): 0.93, ("uniform", 0.25): 0.83, ("uniform", 0.1): 0.66,
    ("recoverable", 0.5): 0.98, ("recoverable", 0.25): 0.91, ("recoverable", 0.1): 0.74,
    ("recoverable", None): 0.94,
}  # fmt: skip
METHODS = ("globalcom2", "random", "uniform", "recoverable")
MANY = (*METHODS, "pool", "token_correlation", "tokenflex")
EVERY = tuple(name for name in compared_methods() if name != "none")
KINDS = {"count": 0.8, "color": 1.0, "tag": 0.9}
MODEL = {"name": "reference", "class": "LlavaNext", "sha256": "ab" * 32, "dtype": "float32",
         "attention": "sdpa", "parameters": 1_930_000, "revision": None}  # fmt: skip

CODE = {"vtc": "0.1.0", "commit": "c0ffee" * 6 + "beef", "dirty": False, "sources": "cd" * 32,
        "python": "3.11.0", "packages": {"torch": "2.13.0", "transformers": "5.23.0"}}  # fmt: skip


def settings(
    methods: Sequence[str] = METHODS,
    retentions: Sequence[float | None] = (0.5, 0.25, 0.1, None),
    seeds: int = 3,
) -> list[Setting]:
    return plan(methods, retentions, seeds)


def manifest(chosen: Sequence[Setting], questions: int, **changes: Any) -> dict[str, Any]:
    """What an accuracy run writes about itself. `changes` replaces whole entries."""
    made = {
        "kind": "accuracy",
        "model": MODEL,
        "suite": {"name": "synthetic", "metric": "accuracy", "limit": None, "items": questions,
                  "facts": {"seed": 1, "count": questions}},
        "settings": [
            {"key": s.key, "method": s.method, "retention": s.retention, "seed": s.seed,
             "options": dict(s.options), "fields": {}}
            for s in chosen
        ],
        "generation": {"max_new_tokens": 8, "do_sample": False, "positions": "original"},
        "code": CODE,
        "sessions": [{"command": "python -m vtc.eval accuracy ...", "processes": 1,
                      "batch_size": 8, "platform": "Linux", "device": "cpu",
                      "device_name": "a CPU", "cpus": 2, "threads": 1, "code": CODE}],
    }  # fmt: skip
    return {**made, **changes}


def answers(chosen: Sequence[Setting], images: int, each: int = 8) -> list[Answer]:
    """One answer a setting and question. Images differ in how hard they are, and methods fail on
    the same hard questions, as real ones do."""
    rng = np.random.default_rng(0)
    hard = np.clip(rng.normal(0.0, 0.08, images), -0.3, 0.15)
    luck = rng.random((images, each))
    out = []
    for setting in chosen:
        own = np.random.default_rng(zlib.crc32(setting.key.encode()))
        ability = ABILITY.get((setting.method, setting.retention), 1.0)
        ability = 0.5 if setting.pixels is not None else ability
        kept = 0.31 if setting.retention is None else setting.retention
        for image in range(images):
            for question in range(each):
                kind = list(KINDS)[question % len(KINDS)]
                drawn = 0.7 * luck[image, question] + 0.3 * own.random()
                right = drawn < 0.93 * KINDS[kind] * ability + hard[image]
                out.append(
                    Answer(
                        setting=setting.key,
                        item=f"{image:04d}-{question}",
                        cluster=f"{image:04d}",
                        kind=kind,
                        answers=("yes",),
                        prediction="yes" if right else "no",
                        score=float(right),
                        tokens=round(kept * 320) + 16,
                        tokens_full=336,
                        patches=None if setting.method == "none" else round(kept * 320),
                        patches_full=None if setting.method == "none" else 320,
                    )
                )
    return out


def failed(answer: Answer) -> Answer:
    """The row as it is when its image is corrupt."""
    return replace(answer, prediction=None, score=None, error="image: cannot be read")


def write_accuracy(
    folder: Path,
    chosen: Sequence[Setting] | None = None,
    images: int = 60,
    rows: Sequence[Answer] | None = None,
    **changes: Any,
) -> Path:
    """An accuracy run on disk."""
    chosen = settings() if chosen is None else chosen
    rows = answers(chosen, images) if rows is None else rows
    folder.mkdir(parents=True, exist_ok=True)
    about = manifest(chosen, images * 8, **changes)
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    text = "".join(row.line() + "\n" for row in rows)
    (folder / "answers.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_efficiency(
    folder: Path, chosen: Sequence[Setting] | None = None, model: Mapping[str, Any] = MODEL
) -> Path:
    """An efficiency run on disk: time grows with the tokens, GlobalCom2 pays for its choice."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = settings(seeds=1) if chosen is None else chosen
    about = manifest(chosen, 0, kind="efficiency", model=dict(model))
    del about["suite"], about["generation"], about["sessions"]
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    with (folder / "measures.jsonl").open("w", encoding="utf-8") as file:
        for setting in chosen:
            share = 0.31 if setting.retention is None else setting.retention
            middle = 0.3 + 0.7 * share + 0.04 * (setting.method == "globalcom2")
            ratio = Ratio(1.0, 1.0, 1.0, 5)
            if setting.method != "none":
                ratio = Ratio(middle, middle * 0.97, middle * 1.05, 5)
            line = Line(
                setting.key, setting.method, setting.retention, 0, {}, "sdpa", rounds=5,
                measures={"ttft": Measure(ratio.median, ratio.low, ratio.high, "s", ratio)},
            )  # fmt: skip
            file.write(line.line() + "\n")
    return folder
