"""Asking a model in batches, and how many answers are right."""

from __future__ import annotations

import math
from collections import defaultdict
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


def prepare(processor: Any, images: Sequence[Sequence[Any]], prompts: Sequence[str]) -> Any:
    """What `model.generate` takes, padded on the left.

    Args:
        images: the images of each prompt; either all prompts have some or none has.
        prompts: finished prompts, with their image tokens.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"  # an answer goes on where its prompt ends
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    nested = [list(row) for row in images] if any(images) else None
    return processor(images=nested, text=list(prompts), padding=True, return_tensors="pt")


def batches(processor: Any, scenes: Iterable[Any], prompt: Callable[[str], str]) -> list[Batch]:
    """One batch a scene: its image, repeated for each of its questions."""
    out = []
    for index, scene in enumerate(scenes):
        if not scene.questions:
            continue
        prompts = [prompt(question.text) for question in scene.questions]
        inputs = prepare(processor, [[scene.image]] * len(prompts), prompts)
        out.append(Batch(inputs, list(scene.questions), [index] * len(scene.questions)))
    return out


def answer(model: Any, processor: Any, inputs: Any, max_new_tokens: int = 8) -> list[str]:
    """Greedy answers, one a row; whatever compression is on the model takes part."""
    import torch

    with torch.inference_mode():
        out = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
    new = out[:, inputs["input_ids"].shape[1] :]
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
