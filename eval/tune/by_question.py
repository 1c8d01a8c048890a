"""A share for each way a question begins, fitted on the images of the search.

Each opening has a curve: the mean score of its questions at every budget of one method. At a price of
tokens it gets the budget with the most `score - price * tokens`; the price moves all of them along. What
a table scores is estimated in folds, each table used on images that it was not fitted on. The table with
the most saving to be expected becomes one more setting. It is confirmed as all others are, on images
that the search never saw, and so the promise is for the table as a whole. That is done behind a setting
with one share, so that nothing is lost where the table fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vtc.config import CompressionConfig
from vtc.eval.tune.promise import Points, outlook
from vtc.eval.tune.search import CHEAPER, LIKELY, WORTH, Search, Standing
from vtc.eval.tune.space import Candidate
from vtc.openings import OTHERS
from vtc.registry import method_class

if TYPE_CHECKING:
    from vtc.eval.tune.ask import Asked

Array = np.ndarray

FOLDS = 5
LEAST = 10  # questions of an opening that has a share of its own
PRIOR = 10  # questions' worth of what holds for all that is added to each opening
PRICES = np.geomspace(1e-3, 10, 60)  # of all tokens, in right answers


@dataclass(frozen=True)
class Asking(Candidate):
    """A method with a share for each opening.

    Attributes:
        shares: as `Method.retention` takes them.
    """

    retention: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def key(self) -> str:
        shares = ", ".join(f"{name}: {share:g}" for name, share in sorted(self.shares.items()))
        return f"{super().key.replace('@own', '@question', 1)}{{{shares}}}"

    @property
    def family(self) -> tuple[str, str, str]:
        return self.method, self.positions, "by question"

    @property
    def label(self) -> str:
        """For people: `divprune at 12 to 70 % by question`."""
        low, high = (100 * each(self.shares.values()) for each in (min, max))
        more = "" if self.positions == "original" else f", positions {self.positions}"
        return f"{self.method} at {low:.6g} to {high:.6g} % by question{more}"

    def config(self) -> CompressionConfig:
        return CompressionConfig(
            self.method, dict(self.shares), positions=self.positions, options=dict(self.options)
        )


@dataclass(frozen=True)
class Table:
    """What questions scored at every budget of one method.

    Attributes:
        budgets: shares of patch tokens, rising, `[B]`; the last is 1.0, the full model.
        scores: `[B, Q]`, those of the full model last.
        tokens: visual tokens in the language model, `[B, Q]`.
        openings: of each question, `[Q]` of str.
        image: number of its image, `[Q]`.
        weight: of each image, `[images]`.
    """

    budgets: Array
    scores: Array
    tokens: Array
    openings: Array
    image: Array
    weight: Array

    @property
    def cost(self) -> Array:
        """Share of the tokens at each budget, `[B]`."""
        return np.asarray(self.tokens.sum(1) / self.tokens[-1].sum())

    def points(self, scores: Array) -> Points:
        """Of one score a question, by image."""
        count = np.bincount(self.image)
        mean = [np.bincount(self.image, each) / count for each in (scores, self.scores[-1])]
        return Points(mean[0], mean[1], self.weight)


def rising(scores: Array) -> Array:
    """`[B, ...]` made to rise with the budget: the mean of the running best from either side."""
    up = np.maximum.accumulate(scores, 0)
    down = np.minimum.accumulate(scores[::-1], 0)[::-1]
    return np.asarray((up + down) / 2)


def curves(scores: Array, openings: Array) -> dict[str, Array]:
    """The curve `[B]` of every opening that enough questions have, and of all together."""
    everyone = scores.mean(1)
    found = {OTHERS: rising(everyone)}
    for name, count in zip(*np.unique(openings, return_counts=True), strict=True):
        if count >= LEAST:
            total = scores[:, openings == name].sum(1) + PRIOR * everyone
            found[str(name)] = rising(total / (count + PRIOR))
    return found


def chosen(found: Mapping[str, Array], cost: Array, price: float) -> dict[str, int]:
    """The number of the budget of each opening; of budgets that are worth the same the smaller."""
    best = {name: int(np.round(curve - price * cost, 9).argmax()) for name, curve in found.items()}
    return {n: each for n, each in best.items() if n == OTHERS or each != best[OTHERS]}


def folds(image: Array, seed: int = 0) -> Iterator[tuple[Array, Array]]:
    """Masks `[Q]` of what is fitted on and what is held out; an image is never in both."""
    part = np.random.default_rng(seed).permutation(int(image.max()) + 1) % FOLDS
    for number in range(FOLDS):
        if (part[image] == number).any() and (part[image] != number).any():
            yield part[image] != number, part[image] == number


def held_out(table: Table) -> dict[float, Array]:
    """For each price the budget's number of every question, `[Q]`, by tables of the other folds."""
    out = {price: np.zeros(len(table.image), dtype=int) for price in PRICES}
    for fit, held in folds(table.image):
        found = curves(table.scores[:, fit], table.openings[fit])
        for price, picks in out.items():
            best = chosen(found, table.cost, price)
            picks[held] = [best.get(name, best[OTHERS]) for name in table.openings[held]]
    return out


@dataclass(frozen=True)
class Fitted:
    """A table of shares, and what may be expected of it."""

    shares: dict[str, float]
    seen: Points
    cost: float
    chance: float
    proof: float


def fit(table: Table, target: float, unseen: int, below: float) -> Fitted | None:
    """The table of shares with the most saving to be expected: the chance of proving it on `unseen`
    images times what it costs less than `below` of the tokens. None where none is worth a try."""
    picks, rows = held_out(table), np.arange(len(table.image))
    every = curves(table.scores, table.openings)
    best: Fitted | None = None
    most = 0.0
    for price in PRICES:
        pick = picks[price]
        shares = {n: float(table.budgets[b]) for n, b in chosen(every, table.cost, price).items()}
        cost = float(table.tokens[pick, rows].sum() / table.tokens[-1].sum())
        if len(shares) < 2 or cost >= below:
            continue
        seen = table.points(table.scores[pick, rows])
        chance, proof = outlook(seen, target, unseen)
        if proof >= WORTH and proof * (below - cost) > most:
            most = proof * (below - cost)
            best = Fitted(shares, seen, cost, chance, proof)
    return best


def add_by_question(
    job: Search, asked: Asked, defaults: Mapping[str, Mapping[str, object]]
) -> Standing | None:
    """Fit shares for the cheapest method of the search that can have them. What saves tokens and may be
    proved is added to the standings of the search and returned; None where nothing does."""
    first = next(iter(job.chain()), None)
    able = [s for s in job.live if s.cost < 1 and _able(s.candidate)]
    if first is None or not able:
        return None
    one = min(able, key=lambda s: (s.proof < LIKELY, s.cost)).candidate
    family = sorted(
        (s.candidate for s in job.standings if s.candidate.family == one.family),
        key=lambda c: c.budget,
    )
    family = [c for c in family if not asked.trouble(c)]
    asked.ask(family, job.images)
    table = asked.table(family, job.images)
    below = CHEAPER * asked.tokens(first.candidate)
    found = fit(table, job.target, len(job.unseen), below)
    if found is None:
        job.told(f"by question: no shares of {one.method} save tokens and may be proved")
        return None
    candidate = Asking(
        one.method, options=one.options, positions=one.positions, shares=found.shares
    )
    asked.prepare([candidate], defaults)
    asked.ask([candidate], job.images)
    standing = Standing(
        candidate, len(job.images), found.seen, asked.cost(candidate), found.chance, found.proof,
        asked.trouble(candidate), after=True,
    )  # fmt: skip
    job.standings.append(standing)
    said = ", ".join(f"{name} {100 * share:g} %" for name, share in found.shares.items())
    job.told(f"by question: {one.method}, {said}")
    return standing


def _able(candidate: Candidate) -> bool:
    """Whether it is one method in front of the language model with a share."""
    alone = "+" not in candidate.method and candidate.retention is not None
    return alone and method_class(candidate.method).where == "boundary"
