"""Exact match but for case and punctuation (GQA)."""

from __future__ import annotations

import string

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, answer: str) -> float:
    """1 when the texts are equal without case, punctuation and white space around, otherwise 0.

    Source: GQA (Hudson & Manning 2019) counts equal words; answers there are lower case without
    punctuation, which lmms-eval removes from what a model says, as here.
    """

    def clean(text: str) -> str:
        return text.strip().lower().translate(_NO_PUNCTUATION).strip()

    return float(clean(prediction) == clean(answer))
