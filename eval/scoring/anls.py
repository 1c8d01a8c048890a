"""ANLS: average normalised Levenshtein similarity (DocVQA, InfographicVQA)."""

from __future__ import annotations

from collections.abc import Iterable

THRESHOLD = 0.5


def levenshtein(a: str, b: str) -> int:
    """Fewest insertions, deletions and substitutions that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def anls(prediction: str, answers: Iterable[str], threshold: float = THRESHOLD) -> float:
    """Similarity to the closest answer, 0 when that is under the threshold.

    Case and runs of white space do not count. As in the script of the DocVQA challenge, the
    distance is divided by the length of the longer text as given, and a similarity of exactly the
    threshold counts (in the paper's formula it does not).

    Returns:
        A number from 0 to 1; 0 when there are no answers.

    Source: Biten et al. 2019, equation 1; Mathew et al. 2021.
    """
    said = " ".join(prediction.lower().split())
    best = 0.0
    for answer in answers:
        longest = max(len(answer.upper()), len(prediction.upper()))
        distance = levenshtein(" ".join(answer.lower().split()), said)
        best = max(best, 1 - distance / longest if longest else 1.0)
    return best if best >= threshold else 0.0
