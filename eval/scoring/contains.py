"""Whether an answer contains the right text (OCRBench)."""

from __future__ import annotations

from collections.abc import Iterable

# full-width forms of the printable ASCII characters, and the ideographic space
_HALF_WIDTH = {0xFEE0 + code: code for code in range(0x21, 0x7F)} | {0x3000: 0x20}


def contains_answer(prediction: str, answers: Iterable[str], formula: bool = False) -> float:
    """1 when one of the answers occurs in the prediction, otherwise 0.

    Line breaks count as spaces, and case and full-width letters do not count.

    Args:
        formula: for handwritten formulas instead: case counts and white space does not.

    Source: OCRBench (Liu et al. 2023), section 3.2 and its evaluation code.
    """

    def clean(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if formula else text.translate(_HALF_WIDTH).lower().strip()

    said = clean(prediction)
    return float(any(clean(answer) in said for answer in answers))
