"""Circular evaluation: a question asked with its options turned counts when all turns are right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


def circular_accuracy(rows: Iterable[tuple[str, int, float]]) -> dict[str, float]:
    """Accuracy over questions and over turns.

    Args:
        rows: (question, number of turns it is asked in, 1 when right and 0 when not) of each
            answered turn. A question of which turns are missing (they failed) is left out.

    Returns:
        `accuracy`: share of questions with every turn right; `vanilla_accuracy`: share of turns.
        Without a whole question there is no `accuracy`, and all turns count.

    Source: MMBench (Liu et al. 2023), section 4.2.
    """
    turns: dict[str, list[float]] = defaultdict(list)
    asked: dict[str, int] = {}
    for question, count, right in rows:
        turns[question].append(right)
        asked[question] = count
    whole = [rights for question, rights in turns.items() if len(rights) == asked[question]]
    if whole:
        accuracy = {"accuracy": sum(all(rights) for rights in whole) / len(whole)}
    else:
        accuracy, whole = {}, list(turns.values())
    vanilla = {"vanilla_accuracy": sum(map(sum, whole)) / sum(map(len, whole))} if whole else {}
    return accuracy | vanilla
