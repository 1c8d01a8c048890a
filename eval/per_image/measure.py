"""Which questions of a mixed set are answered right at which budget, and what the images look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

import vtc
from vtc.eval import reference
from vtc.eval.calibrate_coverage import compressed, hits, listened
from vtc.eval.common.loading import load
from vtc.eval.per_image.features import FEATURES, looks
from vtc.eval.reference.threads import one_thread
from vtc.eval.reference.tokenizer import build_tokenizer

#: shares of patch tokens; 1.0, the full model, is the last
BUDGETS = (
    *(0.02, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.12),
    *(0.15, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0),
)


@dataclass(frozen=True)
class Answered:
    """Every question of a set at every budget of one method.

    Attributes:
        budgets: shares of patch tokens, rising, `[B]`; the last is 1.0.
        right: whether each question is answered right, `[B, Q]`.
        tokens: visual tokens of its image that are left, newlines counted, `[B, Q]`.
        image: number of each question's image, `[Q]`.
        scene, question: what is drawn, and what is asked for, `[Q]` of str.
        opening: the first two words of each question, `[Q]` of str.
        looks: features of each image, `features.FEATURES`, `[Q, F]`.
        words: mean embedding of the question's words in the language model, `[Q, D]`.
    """

    budgets: np.ndarray
    right: np.ndarray
    tokens: np.ndarray
    image: np.ndarray
    scene: np.ndarray
    question: np.ndarray
    opening: np.ndarray
    looks: np.ndarray
    words: np.ndarray

    def save(self, file: Path) -> None:
        """As npz."""
        np.savez_compressed(
            file, **{field.name: getattr(self, field.name) for field in fields(self)}
        )

    @classmethod
    def load(cls, file: Path) -> Answered:
        """What `save` wrote."""
        with np.load(file) as data:
            return cls(**{field.name: data[field.name] for field in fields(cls)})

    def only(self, kept: np.ndarray) -> Answered:
        """The questions of a mask `[Q]`."""
        axis = {"right": 1, "tokens": 1, "budgets": None}
        values: dict[str, Any] = {}
        for field in fields(self):
            value, at = getattr(self, field.name), axis.get(field.name, 0)
            values[field.name] = value if at is None else value.compress(kept, axis=at)
        return Answered(**values)


@one_thread()
def measure(method: str, seeds: Sequence[int], count: int) -> Answered:
    """Validation scenes of the reference model, `count` of each seed, at all `BUDGETS`."""
    loaded = load("reference", "cpu")
    made = vtc.create_method(method)
    sample = [s for seed in seeds for s in reference.scenes("val", count, seed) if s.questions]
    heard = listened(loaded, sample, [made, vtc.create_method("coverage")])
    asked = [(s, q) for s, scene in enumerate(sample) for q in range(len(scene.questions))]
    of = np.array([scene for scene, _ in asked])
    seen = np.array([[looks(each)[name] for name in FEATURES] for each in heard])
    right, tokens = [], []
    for share in track(BUDGETS, method, console=Console(stderr=True)):
        budget = replace(made, retention=share)
        outs = {i: compressed(budget, each) for i, each in enumerate(heard)}
        found = hits(loaded.model, sample, outs)
        right.append([found[key] for key in asked])
        tokens.append(np.array([len(outs[i].features) for i in range(len(sample))])[of])
    questions = [sample[s].questions[q] for s, q in asked]
    return Answered(
        budgets=np.array(BUDGETS),
        right=np.array(right),
        tokens=np.array(tokens),
        image=of,
        scene=np.array([sample[s].kind for s in of]),
        question=np.array([question.type for question in questions]),
        opening=np.array([" ".join(question.text.split()[:2]) for question in questions]),
        looks=seen[of],
        words=words(loaded.model, [question.text for question in questions]),
    )


@torch.no_grad()
def words(model: Any, texts: Sequence[str]) -> np.ndarray:
    """Mean input embedding of each text's words, `[texts, width]`."""
    tokenizer, table = build_tokenizer(), model.get_input_embeddings()
    ids = [tokenizer(text, return_tensors="pt").input_ids[0] for text in texts]
    return np.array([table(each).mean(0).numpy() for each in ids])
