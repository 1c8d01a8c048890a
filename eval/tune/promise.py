"""The promise: a lower bound of quality that holds however few images fail.

Quality is what a setting scores as a share of what the full model scores. Questions about one image
stand or fall together, so an image is one observation: the mean score `s` of the setting on its
questions, that of the full model `f`, both in [0, 1], and a weight `v`. A setting whose true quality
is at most `q` has E[v (s / q - f)] <= 0, so nobody can expect to win by betting on the opposite. From
a stake of 1, a share `g` in (0, 1) of what can be lost is bet on every image:

    wealth = product over images of 1 + g v (s / q - f)

whose expectation stays at most 1. Wealth of 20 has a chance of at most 1 in 20 then (Ville 1939), at
whatever image one stops, for any number of images and any distribution. That is the one-sided 95 %
bound: the largest `q` against which the bets have won 20 times the stake. A bound from a standard
error would call a setting certain that has not failed yet; here 0 failures in `n` images give about
what the exact binomial bound gives.

The stake is spread over several `g`; the search, whose images are others, says how much each gets.

Source: Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting"; the
spread over fixed shares is Cover's (1991) universal portfolio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vtc.errors import VTCError

Array = np.ndarray

LEVEL = 0.95
#: log of the wealth that proves it
PROOF = -math.log(1 - LEVEL)
#: shares of what can be lost that are bet on each image
BETS = np.unique(np.concatenate([np.geomspace(0.005, 0.5, 12), 1 - np.geomspace(0.5, 0.02, 12)]))
_ROOM = np.diff(np.concatenate([[0.0], (BETS[1:] + BETS[:-1]) / 2, [1.0]]))  # around each bet
#: how much of what the search saw counts, and how much of the stake is spread evenly whatever it saw
TRUST, EVEN = 0.7, 0.1
#: an image on which the setting fails is added to what was seen, with this weight
DOUBT = 0.5
DRAWS = 200  # of what else the images seen so far may stand for
MOST = 2.0  # of a bound: a setting may be better than the full model


@dataclass(frozen=True)
class Points:
    """What a setting scored, image by image.

    Attributes:
        setting: mean score of the setting on the questions about each image, `[images]`, 0 to 1.
        full: the same of the full model.
        weight: of each image, in (0, 1].
    """

    setting: Array
    full: Array
    weight: Array

    def __len__(self) -> int:
        return len(self.full)

    @property
    def quality(self) -> float:
        """Points of the setting over those of the full model; nan when the latter has none."""
        full = float((self.weight * self.full).sum())
        return float((self.weight * self.setting).sum()) / full if full else math.nan

    def wealth(self, quality: float) -> Array:
        """Log of what each of `BETS` makes of a stake of 1 against `quality`, `[bets]`."""
        gain = self.weight * (self.setting / quality - self.full)
        return np.log1p(BETS[:, None] * gain).sum(1)


def stakes(seen: Points, target: float) -> Array:
    """How a stake of 1 is spread over `BETS`, by images that are not bet on, `[bets]`."""
    log = TRUST * seen.wealth(target) + 0.1 * np.log1p(-BETS) + np.log(_ROOM)
    spread = np.exp(log - log.max())
    return (1 - EVEN) * spread / spread.sum() + EVEN * _ROOM / _ROOM.sum()


def evidence(points: Points, stake: Array, quality: float) -> float:
    """Log of the wealth won against `quality`; `PROOF` or more proves that the true one is above."""
    log = points.wealth(quality) + np.log(stake)
    top = float(log.max())
    return top + math.log(float(np.exp(log - top).sum()))


def bound(points: Points, stake: Array) -> float:
    """One-sided 95 % lower bound of the quality; 0 where nothing is known.

    Wealth falls as `quality` rises, so the bound is found by halving.
    """
    low, high = 0.0, MOST
    for _ in range(30):
        middle = (low + high) / 2
        if evidence(points, stake, middle) >= PROOF:
            low = middle
        else:
            high = middle
    return low


def outlook(seen: Points, target: float, images: int, seed: int = 0) -> tuple[float, float]:
    """What images seen so far say about others.

    Other images are drawn as Rubin's (1981) Bayesian bootstrap does: random weights for those that
    were seen, and for one more on which the setting fails, so that no failure among few is no
    certainty.

    Args:
        images: how many the setting would be confirmed on.

    Returns:
        The chance that the true quality is at least `target`, and that of proving it.
    """
    from scipy.special import ndtr

    if not len(seen):
        return 0.5, 0.0
    setting, full = np.append(seen.setting, 0.0), np.append(seen.full, 1.0)
    weight = np.append(seen.weight, 1.0)
    draws = _draws(len(full), seed)
    reached = draws @ (weight * (setting - target * full)) >= 0
    log = np.log1p(BETS[:, None] * (weight * (setting / target - full)))
    mean, square = draws @ log.T, draws @ (log**2).T
    noise = np.sqrt(np.maximum(square - mean**2, 1e-12) * max(images, 1))
    won = (images * mean - PROOF - 0.5) / noise  # the stake is spread, which costs about 0.5
    return float(reached.mean()), float(ndtr(won.max(1)).mean())


@lru_cache(maxsize=8)
def _draws(images: int, seed: int) -> Array:
    """Random weights of images, `[draws, images]`, each row with a sum of 1; the last image is the one
    of doubt."""
    rng = np.random.default_rng(seed)
    draws = rng.standard_exponential((DRAWS, images))
    draws[:, -1] = rng.standard_gamma(DOUBT, DRAWS)
    return np.asarray(draws / draws.sum(1, keepdims=True))


def needed(target: float, searched: int, score: float = 1.0) -> int:
    """How many images it takes to promise `target` for a setting that loses nothing on any of them.

    Args:
        target: in (0, 1).
        searched: images of the search.
        score: mean score of the full model, above 0; images that it fails on prove nothing.
    """
    one = np.full(1, score)
    gain = Points(one, one, np.ones(1)).wealth(target)
    log = np.log(stakes(_lossless(searched, score), target))
    low, high = 1, 2
    while _wealth(log, gain, high) < PROOF:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _wealth(log, gain, middle) >= PROOF else (middle, high)
    return high


def highest(images: int, searched: int) -> float:
    """The highest target that so many images can prove, on steps of 0.001; 0 when there is none."""
    for step in range(999, 0, -1):
        if needed(step / 1000, searched) <= images:
            return step / 1000
    return 0.0


def percent_down(low: float) -> str:
    """A bound in percent with one digit, rounded down: what is said holds as well."""
    return f"{math.floor(1000 * low + 1e-5) / 10:.1f}"


def check_target(target: float) -> None:
    """Raise `VTCError` unless `target` is in (0, 1)."""
    number = isinstance(target, (int, float)) and not isinstance(target, bool)
    if not number or not 0 < target < 1:
        raise VTCError(
            f"target: got {target!r}, allowed are numbers in (0, 1), such as 0.99; no finite number of "
            "questions proves 1"
        )


def _lossless(images: int, score: float) -> Points:
    same = np.full(images, score)
    return Points(same, same, np.ones(images))


def _wealth(log: Array, gain: Array, images: int) -> float:
    total = log + images * gain
    top = float(total.max())
    return top + math.log(float(np.exp(total - top).sum()))
