"""The search: successive halving over settings, with the user's own images as rounds.

Every round asks the settings that are left about twice as many images. Behind it go

- those that fall short: by what was seen, a chance of less than 1 in 100 to reach the target; and with
  them smaller budgets of the same method, which are not asked any more;
- those that cost as much as the full model;
- of the rest the worse half, by the saving that can be expected: the chance to reach the target times
  what would be saved. A few always stay, and where a setting falls short, the next larger budget of
  the same method comes back.

Nothing here is a promise: `confirm` asks images that no round has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vtc.eval.tune.promise import PROOF, Points, bound, evidence, outlook, percent_down, stakes
from vtc.eval.tune.space import Candidate

FIRST = 8  # images of the first round
KEPT = 6  # settings that halving leaves
SHORT = 0.01  # chance of reaching the target below which a setting is given up
SURE = 0.99  # chance of a proof at which the search may stop early
LIKELY = 0.9  # chance of a proof at which a setting is the first to be confirmed
HOPE = 0.7  # chance of a proof at which larger budgets need not come back
WORTH = 0.15  # and below which one is not worth a try behind it
NOTHING = "saves nothing against the full model"
UNKNOWN = "its cost could not be measured"
CHEAPER = 0.98  # cost of it that is worth a try, as a share of the first one's
TRIES = 4  # settings that are confirmed at most


class Answers(Protocol):
    """Where answers come from: a model, or a simulation."""

    def ask(self, candidates: Sequence[Candidate], images: Sequence[str]) -> None:
        """Have the answers of all of them to the questions about these images."""

    def points(self, candidate: Candidate, images: Sequence[str]) -> Points:
        """What it scored on images that it was asked about."""

    def cost(self, candidate: Candidate) -> float:
        """What it costs, full model = 1; nan where that is not known."""

    def dear(self, candidate: Candidate) -> bool:
        """Whether it surely costs no less than the full model."""

    def trouble(self, candidate: Candidate) -> str:
        """Why it cannot run; "" where it can."""


@dataclass
class Standing:
    """What became of a setting.

    Attributes:
        candidate: the setting.
        images: how many the search asked it about.
        seen: what it scored there; None before the first round.
        cost: full model = 1.
        chance: of reaching the target, by what the search saw.
        proof: the chance of proving it on the images that are kept back.
        lost: why it is out; "" while it is not.
        waits: whether it is out by halving alone, and may come back.
        confirmed: what it scored on images that the search never saw.
        low: bound of its quality from those; None where it was not confirmed.
        promised: whether the bound is at least the target.
        after: whether it is confirmed behind another setting alone, never first.
    """

    candidate: Candidate
    images: int = 0
    seen: Points | None = None
    cost: float = float("nan")
    chance: float = 0.5
    proof: float = 0.0
    lost: str = ""
    waits: bool = False
    confirmed: Points | None = None
    low: float | None = None
    promised: bool = False
    after: bool = False

    @property
    def quality(self) -> float:
        """On the images that the search never saw where there are any, else on those that it saw."""
        points = self.seen if self.confirmed is None else self.confirmed
        return float("nan") if points is None else points.quality


@dataclass
class Search:
    """Candidates on their way through the rounds.

    Attributes:
        answers: where answers come from.
        target: quality to reach.
        images: of the search, in a random order.
        unseen: images that are kept back to confirm, in a random order.
        told: is given a line behind every round.
    """

    answers: Answers
    target: float
    images: Sequence[str]
    unseen: Sequence[str]
    standings: list[Standing]
    told: Callable[[str], None] = field(default=lambda line: None)

    @property
    def live(self) -> list[Standing]:
        return [standing for standing in self.standings if not standing.lost]

    def run(self) -> None:
        """All rounds, until the images are used up or nothing is left to be decided."""
        for number, count in enumerate(rounds(len(self.images)), 1):
            self._round(number, count)
            if count < len(self.images):
                self._halve(number)
            if not self.live or self._decided():
                break
        while self._back():
            self._round(number, count)
        for standing in self.live:
            if not standing.cost < 1:
                standing.lost = UNKNOWN if math.isnan(standing.cost) else NOTHING

    def _round(self, number: int, count: int) -> None:
        live = self.live
        self.answers.ask([s.candidate for s in live], self.images[:count])
        for standing in live:
            self._look(standing, count)
        for standing in live:
            self._short(standing)
        self.told(
            f"round {number}: {len(live)} settings on {count} images, {len(self.live)} can reach "
            f"{self.target:g}"
        )

    def _look(self, standing: Standing, count: int) -> None:
        candidate, seen = standing.candidate, self.images[:count]
        standing.lost = self.answers.trouble(candidate)
        if standing.lost:
            return
        standing.images = count
        standing.seen = self.answers.points(candidate, seen)
        standing.cost = self.answers.cost(candidate)
        standing.chance, standing.proof = outlook(standing.seen, self.target, len(self.unseen))
        if self.answers.dear(candidate):
            standing.lost = NOTHING

    def _short(self, standing: Standing) -> None:
        """Out with a setting that falls short, and with smaller budgets of the same."""
        if standing.lost or standing.chance >= SHORT:
            return
        standing.lost = "falls short of the target"
        candidate = standing.candidate
        for other in self._family(candidate):
            if other.candidate.budget < candidate.budget and (not other.lost or other.waits):
                other.lost = f"smaller than {candidate.label}, which falls short of the target"
                other.waits = False

    def _halve(self, number: int) -> None:
        ranked = sorted(self.live, key=lambda s: -s.chance * max(0.0, 1 - s.cost))
        for standing in ranked[max(KEPT, (len(ranked) + 1) // 2) :]:
            standing.lost, standing.waits = f"worse half of round {number}", True
        for candidate in {s.candidate.family: s.candidate for s in self.standings}.values():
            self._next_larger(candidate)

    def _next_larger(self, candidate: Candidate) -> bool:
        """Bring back the smallest budget that waits where all smaller ones have fallen short."""
        family = self._family(candidate)
        waiting = [s for s in family if s.waits]
        if not waiting or any(not s.lost for s in family):
            return False
        smallest = min(waiting, key=lambda s: s.candidate.budget)
        if not any(s.images and s.candidate.budget < smallest.candidate.budget for s in family):
            return False  # halved out as a whole: others save more
        smallest.lost, smallest.waits = "", False
        return True

    def _back(self) -> bool:
        """Behind the last round: where nothing is likely to be proved, larger budgets of every method
        that has been left come back, a step at a time; whether any did."""
        if any(s.proof >= HOPE and s.cost < 1 for s in self.live):
            return False
        families = {s.candidate.family: s.candidate for s in self.standings}
        found = False
        for candidate in families.values():
            waiting = [s for s in self._family(candidate) if s.waits]
            if waiting:
                standing = min(waiting, key=lambda s: s.candidate.budget)
                standing.lost, standing.waits, found = "", False, True
        return found

    def _family(self, candidate: Candidate) -> list[Standing]:
        return [s for s in self.standings if s.candidate.family == candidate.family]

    def _decided(self) -> bool:
        """Whether more images cannot change what is confirmed."""
        chain = self.chain()
        if not chain or chain[0].proof < SURE:
            return False
        cheaper = [s for s in self.live if s.cost < chain[0].cost]
        return all(standing.chance < 2 * SHORT for standing in cheaper)

    def chain(self) -> list[Standing]:
        """The settings to confirm, in the order in which they are: the cheapest that is likely to be
        proved, then cheaper ones, each worth a try if the one before it holds. Where none is likely
        the likeliest comes first; of settings that all fall short, the one with the best quality."""
        every = [s for s in self.live if s.cost < 1]
        live = [s for s in every if not s.after]
        if not live:
            known = [s for s in self.standings if s.seen is not None and s.cost < 1]
            return sorted(known, key=lambda s: (-s.images, -s.quality))[:1]
        likely = [s for s in live if s.proof >= LIKELY]
        if likely:
            first = min(likely, key=lambda s: s.cost)
        else:
            first = max(live, key=lambda s: (s.proof, s.quality))
        worth = [s for s in every if s.cost < CHEAPER * first.cost and s.proof >= WORTH]
        return [first, *sorted(worth, key=lambda s: -s.cost)][:TRIES]

    def confirm(self) -> Standing | None:
        """Confirm the chain on images that the search never saw, and return the cheapest setting that
        holds; None when none does.

        The settings are tested one after the other in an order that was fixed before, and the first
        that fails ends it: the chance that any of them is promised wrongly is 5 %, not 5 % each.
        """
        found = None
        for standing in self.chain():
            self._confirm(standing)
            if standing.promised:
                low = percent_down(standing.low or 0.0)
                self.told(f"{standing.candidate.label} holds: at least {low} %")
                found = standing
                continue
            standing.lost = standing.lost or "not proved on the images that the search never saw"
            self.told(f"{standing.candidate.label} is not proved")
            break
        for standing in self.live:
            if found is not None and standing is not found:
                standing.lost = (
                    f"costs more than {found.candidate.label}"
                    if standing.cost >= found.cost
                    else "not likely to be proved"
                )
        return found

    def _confirm(self, standing: Standing) -> None:
        """Ask until it is proved, or cannot be any more; the bound holds wherever one stops."""
        assert standing.seen is not None
        stake, candidate = stakes(standing.seen, self.target), standing.candidate
        for count in looks(len(self.unseen)):
            images = self.unseen[:count]
            self.answers.ask([candidate], images)
            standing.confirmed = points = self.answers.points(candidate, images)
            standing.promised = evidence(points, stake, self.target) >= PROOF
            if standing.promised or not self._possible(points, stake):
                break
        standing.low = bound(points, stake)

    def _possible(self, points: Points, stake: np.ndarray) -> bool:
        """Whether it could still be proved if it lost nothing on the images that are left."""
        if not len(points):  # the full model could not be asked yet
            return True
        left = len(self.unseen) - len(points)
        full = np.append(points.full, np.full(left, points.full.mean()))
        setting = np.append(points.setting, np.full(left, points.full.mean()))
        weight = np.append(points.weight, np.ones(left))
        rest = Points(setting, full, weight)
        return evidence(rest, stake, self.target) >= PROOF


def rounds(images: int) -> list[int]:
    """How many images each round has seen: doubled from `FIRST`, the last has all."""
    counts, count = [], FIRST
    while count < images:
        counts.append(count)
        count *= 2
    return [*counts, images]


def looks(images: int) -> list[int]:
    """How many images are asked about between looks at what is proved: an eighth of them more each."""
    step = max(8, -(-images // 8))
    return [min(images, step * (i + 1)) for i in range(-(-images // step))]
