"""Hard questions: what the full model answers and fewer pixels do not.

Many questions are answered as well from a coarse picture, so that a benchmark says little about what a
method keeps (VTC-Bench makes the same point). So the plain model is asked once more, about pictures that
hold as many pixels as a retention leaves patches: shrunk and enlarged again, so that it reads as many
tokens as before and sees only less detail. A question is hard at that retention when the full model is
right and this one is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vtc.eval.common.settings import FULL, Setting

if TYPE_CHECKING:
    from PIL.Image import Image

    from vtc.eval.common.records import Answer

#: a score above it is a right answer
RIGHT = 0.5


def coarse(image: Image, share: float) -> Image:
    """A picture with `share` of its pixels, at its old size: every side times the root of `share`,
    at least a pixel, and back; bicubic both ways, where shrinking weighs all pixels that are covered."""
    from PIL.Image import Resampling

    size = [max(1, round(side * math.sqrt(share))) for side in image.size]
    small = image.resize((size[0], size[1]), Resampling.BICUBIC)
    return small.resize(image.size, Resampling.BICUBIC)


def hard_items(
    settings: Iterable[Setting], answers: Mapping[str, Iterable[Answer]]
) -> dict[float, list[str]]:
    """The hard questions at every share of pixels that was asked about; none where the full model was
    not asked.

    Args:
        settings: of the run.
        answers: by key of the setting.

    Returns:
        Share of pixels -> ids of items, in order.
    """
    full = _scores(answers.get(FULL.key, ()))
    found = {}
    for setting in settings:
        if setting.pixels is not None and full:
            blurred = _scores(answers.get(setting.key, ()))
            found[setting.pixels] = sorted(
                item
                for item, score in blurred.items()
                if score <= RIGHT and full.get(item, 0.0) > RIGHT
            )
    return found


def _scores(answers: Iterable[Answer]) -> dict[str, float]:
    return {a.item: a.score for a in answers if a.score is not None and a.error is None}
