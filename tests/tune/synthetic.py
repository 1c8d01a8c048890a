"""Answers that are drawn, of settings whose true quality is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vtc.eval.tune.promise import Points
from vtc.eval.tune.search import Search, Standing
from vtc.eval.tune.space import Candidate


@dataclass(frozen=True)
class World:
    """How questions and answers are drawn.

    Attributes:
        images: how many.
        questions: about each.
        full: how often the full model is right.
        linked: share of a setting's losses that strike all questions about an image at once.
    """

    images: int = 66
    questions: int = 3
    full: float = 1.0
    linked: float = 0.5


class Drawn:
    """`search.Answers` from random numbers; a setting never answers what the full model does not, so
    that its true quality is what `truth` says."""

    def __init__(
        self,
        world: World,
        truth: Mapping[Candidate, float],
        seed: int,
        costs: Mapping[Candidate, float] | None = None,
        refused: Mapping[Candidate, str] | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        size = world.images, world.questions
        right = rng.random(size) < world.full
        self.full, self.setting = right.mean(1), {}
        for candidate, quality in truth.items():
            all_at_once = world.linked * (1 - quality)
            alone = 1 - quality / (1 - all_at_once)
            lost = (rng.random((world.images, 1)) < all_at_once) | (rng.random(size) < alone)
            self.setting[candidate.key] = (right & ~lost).mean(1)
        self.costs, self.refused = costs or {}, refused or {}
        self.asked: list[tuple[str, str]] = []

    def ask(self, candidates: Sequence[Candidate], images: Sequence[str]) -> None:
        known = set(self.asked)
        pairs = [(c.key, image) for c in candidates for image in images]
        self.asked += [pair for pair in pairs if pair not in known]

    def points(self, candidate: Candidate, images: Sequence[str]) -> Points:
        chosen = np.array([int(image) for image in images])
        return Points(self.setting[candidate.key][chosen], self.full[chosen], np.ones(len(chosen)))

    def cost(self, candidate: Candidate) -> float:
        return self.costs.get(candidate, candidate.budget)

    def dear(self, candidate: Candidate) -> bool:
        return self.cost(candidate) >= 1

    def trouble(self, candidate: Candidate) -> str:
        return self.refused.get(candidate, "")


def tuned(
    world: World, truth: Mapping[Candidate, float], target: float, seed: int = 0, **more: object
) -> tuple[Standing | None, Search, Drawn]:
    """Search and confirm, a third of the images for the search."""
    answers = Drawn(world, truth, seed, **more)  # type: ignore[arg-type]
    order = [str(i) for i in np.random.default_rng(seed).permutation(world.images)]
    cut = world.images // 3
    search = Search(answers, target, order[:cut], order[cut:], [Standing(c) for c in truth])
    search.run()
    return search.confirm(), search, answers
