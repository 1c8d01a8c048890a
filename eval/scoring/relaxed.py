"""Relaxed accuracy: numbers may be off by 5 % (ChartQA)."""

from __future__ import annotations

TOLERANCE = 0.05


def number(text: str) -> float | None:
    """The value of a number or a percentage (`"12%"` is 0.12), None for any other text."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed_accuracy(prediction: str, answer: str, tolerance: float = TOLERANCE) -> float:
    """1 when a number is within `tolerance` of the right one, or a text equals it; otherwise 0.

    A right answer of zero is compared as text, and so are numbers with thousands separators, as in
    the evaluation that ChartQA figures are reported with. Case does not count.

    Source: Masry et al. 2022, section 5.1, after Methani et al. 2020.
    """
    prediction, answer = prediction.strip(), answer.strip()
    said, right = number(prediction), number(answer)
    if said is None or not right:
        return float(prediction.lower() == answer.lower())
    return float(abs(said - right) / abs(right) <= tolerance)
