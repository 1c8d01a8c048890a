"""Yes-or-no questions as a binary classification with "yes" as the positive class (POPE)."""

from __future__ import annotations

from collections.abc import Iterable


def says_yes(prediction: str) -> bool:
    """Whether an answer counts as "yes": its first sentence has none of the words no, not, No.

    Source: the evaluation script of POPE (Li et al. 2023).
    """
    words = prediction.split(".")[0].replace(",", "").split()
    return not {"No", "no", "not"}.intersection(words)


def binary_figures(pairs: Iterable[tuple[bool, bool]]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and the share of "yes" among the predictions.

    Args:
        pairs: (said yes, is yes) of each question.

    Returns:
        Numbers from 0 to 1; a ratio without a denominator is 0.
    """
    pairs = list(pairs)
    count = {outcome: pairs.count(outcome) for outcome in set(pairs)}
    hits, misses = count.get((True, True), 0), count.get((False, True), 0)
    alarms, rejections = count.get((True, False), 0), count.get((False, False), 0)

    def share(part: float, whole: float) -> float:
        return part / whole if whole else 0.0

    return {
        "accuracy": share(hits + rejections, len(pairs)),
        "precision": share(hits, hits + alarms),
        "recall": share(hits, hits + misses),
        "f1": share(2 * hits, 2 * hits + alarms + misses),
        "yes_ratio": share(hits + alarms, len(pairs)),
    }
