"""MME score: two questions an image, accuracy and accuracy on both together, by subtask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from vtc.errors import VTCError

PERCEPTION = ("existence count position color posters celebrity scene landmark artwork OCR").split()
COGNITION = "commonsense_reasoning numerical_calculation text_translation code_reasoning".split()


def yes_no_other(prediction: str) -> str:
    """ "yes", "no" or "other": the answer itself, its initial, or what its first four letters hold.

    Source: the evaluation tool of MME (Fu et al. 2023).
    """
    said = prediction.lower().strip().replace(".", "")
    if said in ("y", "n"):
        return {"y": "yes", "n": "no"}[said]
    return next((word for word in ("yes", "no") if word in said[:4]), "other")


def mme_scores(rows: Iterable[tuple[str, str, float]]) -> dict[str, float]:
    """Scores by subtask and their sums.

    A subtask scores 100 x accuracy over questions + 100 x share of images with both questions
    right, at most 200. Images with a single question among `rows` (the other one failed) are left
    out.

    Args:
        rows: (subtask, image, 1 when right and 0 when not) of each question.

    Returns:
        `perception` (at most 2000), `cognition` (at most 800), `score` (their sum) and
        `score/SUBTASK` of each subtask.

    Raises:
        VTCError: a subtask that MME does not have, or an image with more than two questions.

    Source: Fu et al. 2023, section 2.2.
    """
    images: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for subtask, image, right in rows:
        if subtask not in (*PERCEPTION, *COGNITION):
            raise VTCError(
                f"category: got {subtask!r}, MME has {', '.join((*PERCEPTION, *COGNITION))}"
            )
        images[subtask][image].append(right)
    scores = {}
    for subtask, found in images.items():
        for image, rights in found.items():
            if len(rights) > 2:
                raise VTCError(f"question_id: {image!r} has {len(rights)} questions, MME asks two")
        pairs = [rights for rights in found.values() if len(rights) == 2]
        if pairs:
            single = sum(map(sum, pairs)) / (2 * len(pairs))
            both = sum(sum(pair) == 2 for pair in pairs) / len(pairs)
            scores[subtask] = 100 * (single + both)
    perception = sum(scores.get(subtask, 0.0) for subtask in PERCEPTION)
    cognition = sum(scores.get(subtask, 0.0) for subtask in COGNITION)
    return {
        "score": perception + cognition,
        "perception": perception,
        "cognition": cognition,
        **{f"score/{subtask}": value for subtask, value in scores.items()},
    }
