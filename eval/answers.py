"""Answers of a model to the questions about scenes, and how many of them are right."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Batch:
    """Questions that go through the model together.

    Attributes:
        inputs: what `model.generate` takes, padded on the left.
        questions: one a row.
        scenes: number of the scene of each row.
    """

    inputs: Any
    questions: list[Any]
    scenes: list[int]


@dataclass(frozen=True)
class Score:
    """Accuracy over questions.

    Attributes:
        accuracy: share of right answers.
        error: standard error of `accuracy`. Questions about one scene stand or fall together, so
            whole scenes count as the independent units.
        count: number of questions.
        groups: accuracy by group of question types.
    """

    accuracy: float
    error: float
    count: int
    groups: dict[str, float]


def batches(processor: Any, scenes: Iterable[Any], prompt: Callable[[str], str]) -> list[Batch]:
    """One batch a scene: its image, repeated for each of its questions."""
    out = []
    for index, scene in enumerate(scenes):
        if not scene.questions:
            continue
        inputs = processor(
            images=[scene.image] * len(scene.questions),
            text=[prompt(question.text) for question in scene.questions],
            padding=True,
            return_tensors="pt",
        )
        out.append(Batch(inputs, list(scene.questions), [index] * len(scene.questions)))
    return out


def answer(model: Any, processor: Any, batch: Batch, max_new_tokens: int = 8) -> list[str]:
    """Greedy answers, one a question; whatever compression is on the model takes part."""
    import torch

    with torch.inference_mode():
        out = model.generate(**batch.inputs, do_sample=False, max_new_tokens=max_new_tokens)
    new = out[:, batch.inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def score(right: Sequence[bool], scenes: Sequence[int], groups: Sequence[str]) -> Score:
    """Accuracy with its standard error.

    Args:
        right: for each question whether the answer was right.
        scenes: for each question the scene it is about.
        groups: for each question the group of its type.
    """
    count = len(right)
    mean = sum(right) / count
    by_scene: dict[int, float] = defaultdict(float)
    by_group: dict[str, list[bool]] = defaultdict(list)
    for hit, scene, group in zip(right, scenes, groups, strict=True):
        by_scene[scene] += hit - mean
        by_group[group].append(hit)
    return Score(
        accuracy=mean,
        error=math.sqrt(sum(value**2 for value in by_scene.values())) / count,
        count=count,
        groups={name: sum(hits) / len(hits) for name, hits in sorted(by_group.items())},
    )


def majority(questions: Iterable[Any]) -> float:
    """Accuracy of always giving the most frequent answer of a question's type."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        answers[question.type][question.answer] += 1
    total = sum(counter.total() for counter in answers.values())
    return sum(counter.most_common(1)[0][1] for counter in answers.values()) / max(total, 1)
