"""Who may choose the budget: a share for all, what is drawn or asked, a predictor, or hindsight.

A policy gives every question a row of scores, one for each budget: how likely the answer is right there.
At a price of tokens each question then gets the budget with the most `score - price * tokens`. So the
price moves a policy along its own curve of quality over tokens, and no policy is held to the shape of
another. What is fitted is fitted on other images than it is used on, in folds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vtc.eval.per_image.features import FEATURES
from vtc.eval.per_image.measure import Answered
from vtc.eval.tune.by_question import PRIOR, folds, rising

Array = np.ndarray

RIDGE = 3.0  # strength, of features with spread 1
PRICES = np.geomspace(1e-4, 1e2, 121)  # of all of an image's tokens, in right answers


@dataclass(frozen=True)
class Policy:
    """A name, and a function from the set to scores `[B, Q]`."""

    name: str
    scores: Callable[[Answered], Array]


def policies() -> list[Policy]:
    """All of them; the names are those of the log."""
    return [
        Policy("kind of scene, told", lambda a: grouped(a, a.scene)),
        Policy("kind of question, told", lambda a: grouped(a, a.question)),
        Policy("both, told", lambda a: grouped(a, both(a))),
        Policy("first two words of the question", lambda a: grouped(a, a.opening)),
        Policy("image, told by half of its questions", lambda a: halves(a)),
        *(Policy(f"ridge: {name}", _one(number)) for number, name in enumerate(FEATURES)),
        Policy("ridge: image", lambda a: ridge(a, a.looks)),
        Policy("ridge: question", lambda a: ridge(a, a.words)),
        Policy("ridge: image and question", lambda a: ridge(a, joined(a))),
        Policy("hindsight, by image", lambda a: hindsight(a, a.image)),
        Policy("hindsight, by question", lambda a: a.right.astype(float)),
    ]


def _one(number: int) -> Callable[[Answered], Array]:
    return lambda a: ridge(a, a.looks[:, [number]])


def both(answered: Answered) -> Array:
    """Kind of scene and of question in one word."""
    return np.char.add(np.char.add(answered.scene, " "), answered.question)


def joined(answered: Answered) -> Array:
    """Features of the image, of the question, and the products of the first with the main parts of
    the second."""
    looks, words = _scaled(answered.looks), _scaled(answered.words)
    main = words @ np.linalg.svd(words, full_matrices=False)[2][:4].T
    main = main / (main.std(0) + 1e-9)
    products = (looks[:, :, None] * main[:, None]).reshape(len(looks), -1)
    return np.concatenate([looks, words, products], 1)


def grouped(answered: Answered, group: Array) -> Array:
    """Each group's own share of right answers at each budget."""
    out = np.zeros(answered.right.shape)
    for fit, held in folds(answered.image):
        everyone = answered.right[:, fit].mean(1)
        for name in np.unique(group[held]):
            mine = answered.right[:, fit & (group == name)]
            mean = (mine.sum(1) + PRIOR * everyone) / (mine.shape[1] + PRIOR)
            out[:, held & (group == name)] = rising(mean)[:, None]
    return out


def ridge(answered: Answered, values: Array) -> Array:
    """A linear regression for each budget on the same features `[Q, F]`."""
    out = np.zeros(answered.right.shape)
    for fit, held in folds(answered.image):
        centre, spread = values[fit].mean(0), values[fit].std(0) + 1e-9
        x = (values - centre) / spread
        y = answered.right[:, fit].astype(float)
        mean = y.mean(1)
        gram = x[fit].T @ x[fit] + RIDGE * np.sqrt(fit.sum()) * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x[fit].T @ (y - mean[:, None]).T)
        out[:, held] = rising((x[held] @ weights).T + mean[:, None])
    return out


def hindsight(answered: Answered, group: Array) -> Array:
    """What each group did score: a ceiling that nothing can reach, chance and all."""
    out = np.zeros(answered.right.shape)
    for name in np.unique(group):
        mine = group == name
        out[:, mine] = answered.right[:, mine].mean(1)[:, None]
    return out


def halves(answered: Answered) -> Array:
    """What the other half of the questions about the image scored, as far as it goes beyond what holds
    for all: a ceiling for what the image by itself can tell."""
    out = np.zeros(answered.right.shape)
    place = np.concatenate([np.arange(n) for n in np.unique(answered.image, return_counts=True)[1]])
    for fit, held in folds(answered.image):
        everyone = answered.right[:, fit].mean(1)
        for name in np.unique(answered.image[held]):
            for side in (0, 1):
                mine = (answered.image == name) & (place % 2 == side)
                other = answered.right[:, (answered.image == name) & (place % 2 != side)]
                mean = (other.sum(1) + 3 * everyone) / (other.shape[1] + 3)
                out[:, mine] = rising(mean)[:, None]
    return out


def _scaled(values: Array) -> Array:
    return (values - values.mean(0)) / (values.std(0) + 1e-9)


def choose(scores: Array, tokens: Array, price: float) -> Array:
    """The budget that each question gets, `[Q]`: of the best the cheapest."""
    worth = scores - price * tokens / tokens[-1].mean()
    return np.asarray((np.round(worth, 9)).argmax(0))


def curve(answered: Answered, scores: Array | None) -> tuple[Array, Array]:
    """Right answers and tokens of each question along a policy's curve, each `[points, Q]`; of None, one
    share for all."""
    if scores is None:
        return answered.right.astype(float), answered.tokens.astype(float)
    rows = np.arange(answered.right.shape[1])
    every = [choose(scores, answered.tokens, price) for price in PRICES]
    picks = list({pick.tobytes(): pick for pick in every}.values())
    return (
        np.array([answered.right[pick, rows] for pick in picks], dtype=float),
        np.array([answered.tokens[pick, rows] for pick in picks], dtype=float),
    )
