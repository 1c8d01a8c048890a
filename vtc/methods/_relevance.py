"""How well each patch fits the question, in a space that image and text share or by the words alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.greedy import mean_cosine, unit_range
from vtc.methods import _fields
from vtc.methods.asks_text import text_rows
from vtc.tokens import SignalRequest


def check_fields(text_score: Any, sign: Any) -> None:
    """The two options are among those that `relevance` knows."""
    _fields.one_of("text_score", text_score, ("aligned", "similarity"))
    _fields.one_of("sign", sign, ("auto", "negative", "positive"))


def relevance_requests(text_score: str, layer: int | float | str) -> dict[str, SignalRequest]:
    """The signals that `relevance` reads.

    Args:
        text_score: "aligned" or "similarity".
        layer: whose hidden states are projected into the shared space, behind the tower's final norm.
    """
    if text_score == "similarity":
        return {"question_tokens": SignalRequest("question_tokens")}
    return {
        "patch_embedding": SignalRequest("patch_embedding", layer, norm=True),
        "text_segments": SignalRequest("text_segments"),
    }


def relevance(batch: ImageBatch, text_score: str, sign: str) -> Tensor:
    """Float32 `[S, N]`, from 0 to 1 over each image.

    Mean cosine of a patch with the pieces of the question in the shared space ("aligned"), or of its
    feature with the question's tokens, both as the language model reads them ("similarity"). In the
    space of CLIP patches and text that belong together are *less* alike than others, as arXiv 2506.10967
    found, so that "auto" negates the first.
    """
    aligned = text_score == "aligned"
    rows = batch.signal("patch_embedding") if aligned else batch.features
    texts, real, _ = text_rows(batch, "text_segments" if aligned else "question_tokens")
    close = mean_cosine(rows, texts, real)
    if sign == "negative" or (sign == "auto" and aligned):
        close = -close
    image, valid = (batch.padded(x, 0).flatten(1) for x in (close, batch.tables.valid))
    return batch.unpadded(unit_range(image, valid, low=1e-6))
