"""How well each patch fits the question, in a space that image and text share or by the words alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.greedy import mean_cosine, unit_range
from vtc.methods import _fields
from vtc.methods.asks_text import text_rows
from vtc.tokens import SignalRequest


def check_fields(text_score: Any, sign: Any) -> None:
    """The two options are among those that are known here."""
    _fields.one_of("text_score", text_score, ("aligned", "similarity"))
    _fields.one_of("sign", sign, ("auto", "negative", "positive"))


def relevance_requests(text_score: str, layer: int | float | str) -> dict[str, SignalRequest]:
    """The signals that relevance is made of.

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
    """Float32 `[S, N]`: cosines as `_closeness` has them, scaled to [0, 1] over each image."""
    return batch.unpadded(unit_range(*_of_images(batch, text_score, sign), low=1e-6))


def asked_share(batch: ImageBatch, text_score: str, sign: str, sharpness: float) -> Tensor:
    """Float32 `[S, N]`: how the question divides itself among the patches of each image, 1 together.

    A softmax of `sharpness` times the standardised cosines: mean 0 and deviation 1 over the image, since
    cosines of patches and text have another range in every tower.
    """
    close, valid = _of_images(batch, text_score, sign)
    count = valid.sum(1, keepdim=True).clamp(min=1)
    apart = (close - (close * valid).sum(1, keepdim=True) / count) * valid
    spread = (apart.square().sum(1, keepdim=True) / count).sqrt().clamp(min=1e-6)
    least = torch.finfo(close.dtype).min
    return batch.unpadded((sharpness * apart / spread).masked_fill(~valid, least).softmax(1))


def _of_images(batch: ImageBatch, text_score: str, sign: str) -> tuple[Tensor, Tensor]:
    """`_closeness` with a row an image, `[B, most * N]`, and which of these are patches."""
    close, valid = _closeness(batch, text_score, sign), batch.tables.valid
    return batch.padded(close, 0).flatten(1), batch.padded(valid, False).flatten(1)


def _closeness(batch: ImageBatch, text_score: str, sign: str) -> Tensor:
    """Float32 `[S, N]`: mean cosine of a patch with the pieces of the question in the shared space
    ("aligned"), or of its feature with the question's tokens, both as the language model reads them
    ("similarity").

    In the space of CLIP patches and text that belong together are *less* alike than others, as arXiv
    2506.10967 found, so that the sign "auto" negates the first.
    """
    aligned = text_score == "aligned"
    rows = batch.signal("patch_embedding") if aligned else batch.features
    texts, real, _ = text_rows(batch, "text_segments" if aligned else "question_tokens")
    close = mean_cosine(rows, texts, real)
    return -close if sign == "negative" or (sign == "auto" and aligned) else close
