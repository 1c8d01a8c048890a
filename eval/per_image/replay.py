"""What `vtc tune --by-question` would have found, on answers that are there.

The answers of the study are split at random into images to search and images to confirm, as `vtc tune`
does, and its search runs on them twice: with one share for all, and with shares by question beside.
Both see the same images. Nothing is asked again, so that many splits cost little. A high target takes
more images than were asked about: with `--images` each run draws as many of them, with repetition, and
what it finds is what users would find whose images are like these.

    python -m vtc.eval.per_image.study --answers answers.npz
    python -m vtc.eval.per_image.replay answers.npz --target 0.9
    python -m vtc.eval.per_image.replay answers.npz --target 0.95 --images 1000
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vtc.eval.common.arguments import positive
from vtc.eval.per_image.measure import Answered
from vtc.eval.tune.by_question import Asking, Table, add_by_question
from vtc.eval.tune.promise import Points
from vtc.eval.tune.run import SHARE
from vtc.eval.tune.search import Search, Standing
from vtc.eval.tune.space import RETENTIONS, Candidate
from vtc.openings import OTHERS

Array = np.ndarray


@dataclass
class Replayed:
    """Answers that are there, as `search.Answers` and as `by_question` reads them."""

    answered: Answered
    budgets: Sequence[float]
    rows: dict[str, Array] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.every = np.arange(len(self.answered.image))

    def ask(self, candidates: Sequence[Candidate], images: Sequence[str]) -> None:
        """They are there."""

    def prepare(self, candidates: Sequence[Candidate], defaults: object) -> None:
        """Nothing to be done without a model."""

    def trouble(self, candidate: Candidate) -> str:
        """None."""
        return ""

    def picks(self, candidate: Candidate) -> Array:
        """The number of the budget of every question."""
        if candidate.key not in self.rows:
            shares = {OTHERS: candidate.budget}
            if isinstance(candidate, Asking):
                shares = dict(candidate.shares)
            mine = [shares.get(name, shares[OTHERS]) for name in self.answered.opening]
            self.rows[candidate.key] = np.searchsorted(self.answered.budgets, mine)
        return self.rows[candidate.key]

    def points(self, candidate: Candidate, images: Sequence[str]) -> Points:
        """Of some images."""
        right = self.answered.right[self.picks(candidate), self.every].astype(float)
        return self.table([], images).points(right[self._of(images)])

    def table(self, candidates: Sequence[Candidate], images: Sequence[str]) -> Table:
        """As `Asked.table`."""
        budgets = np.array([*(candidate.budget for candidate in candidates), 1.0])
        rows, here = np.searchsorted(self.answered.budgets, budgets), self._of(images)
        index = np.unique(self.answered.image[here], return_inverse=True)[1]
        return Table(
            budgets,
            self.answered.right[rows][:, here].astype(float),
            self.answered.tokens[rows][:, here].astype(float),
            self.answered.opening[here],
            index,
            np.ones(int(index.max()) + 1),
        )

    def tokens(self, candidate: Candidate) -> float:
        """Share of the tokens."""
        tokens = self.answered.tokens
        return float(tokens[self.picks(candidate), self.every].sum() / tokens[-1].sum())

    cost = tokens

    def dear(self, candidate: Candidate) -> bool:
        """Whether it saves nothing."""
        return self.tokens(candidate) >= 1

    def _of(self, images: Sequence[str]) -> Array:
        return np.isin(self.answered.image, np.array(images, dtype=int))


def drawn(answered: Answered, images: int, seed: int) -> Answered:
    """So many images, each drawn at random from all, whatever was drawn before."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(np.unique(answered.image), images)
    rows = [np.flatnonzero(answered.image == each) for each in chosen]
    taken = np.concatenate(rows)
    named = {
        name: getattr(answered, name)[taken]
        for name in ("scene", "question", "opening", "looks", "words")
    }
    number = np.repeat(np.arange(images), [len(each) for each in rows])
    right, tokens = answered.right[:, taken], answered.tokens[:, taken]
    return Answered(answered.budgets, right, tokens, image=number, **named)


def replay(
    answered: Answered, target: float, seed: int, shares: Sequence[float]
) -> tuple[float, float, bool]:
    """Tokens of what is promised without and with shares by question, and whether such shares are what
    is promised. 1.0 where nothing is: the full model stays."""
    names = [
        str(each) for each in np.random.default_rng(seed).permutation(np.unique(answered.image))
    ]
    cut = round(SHARE * len(names))
    found = []
    for by_question in (False, True):
        answers = Replayed(answered, shares)
        standings = [Standing(Candidate("divprune", share)) for share in shares]
        job = Search(answers, target, names[:cut], names[cut:], standings)
        job.run()
        if by_question:
            add_by_question(job, answers, {})  # type: ignore[arg-type]  # as far as it asks
        found.append(job.confirm())
    one, many = (1.0 if each is None else each.cost for each in found)
    return one, many, found[1] is not None and isinstance(found[1].candidate, Asking)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("answers", type=Path, help="npz of the study")
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--images", type=positive, help="drawn for each run; default: those asked")
    parser.add_argument("--splits", type=positive, default=20)
    args = parser.parse_args(argv)
    answered = Answered.load(args.answers)
    shares = sorted({0.7, *RETENTIONS} & set(answered.budgets.tolist()), reverse=True)
    sets = (
        drawn(answered, args.images, seed) if args.images else answered
        for seed in range(args.splits)
    )
    rows = np.array([replay(each, args.target, seed, shares) for seed, each in enumerate(sets)])
    one, many, taken = rows.T
    saved = 1 - many / one
    low, middle, high = np.quantile(saved, (0.25, 0.5, 0.75))
    print(f"one share {one.mean():.3f} of the tokens, with shares by question {many.mean():.3f}")
    print(
        f"saved: median {middle:.0%}, quartiles {low:.0%} and {high:.0%}, least {saved.min():.0%}"
    )
    print(f"shares by question were promised in {taken.mean():.0%} of {args.splits} splits")


if __name__ == "__main__":
    main()
