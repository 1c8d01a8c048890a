"""EADP: patches that cover what the question's pointed words find important."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.eadp import pointed_relevance, smoothed
from vtc.functional.greedy import cosines, unit_range
from vtc.functional.ragged import to_device, to_host
from vtc.methods import _fields
from vtc.methods.asks_text import AsksText, text_rows
from vtc.methods.greedy import Candidates, Greedy, Picks
from vtc.registry import register_method
from vtc.tokens import SignalRequest


@register_method
@dataclass
class EADP(AsksText, Greedy):
    """Keeps the patches that cover the important ones best; importance comes from the question.

    Of the question's tokens those count that tell few patches from the others (lowest entropy). With the
    question as a whole they give each patch a likeness, which is negated as the official code does in
    any space, scaled to [0, 1] over the image, smoothed over neighbours and raised to a power. A patch i
    is covered by a set as well as the largest `(1 + cosine_ij) / 2` to one of them, by the features that
    the language model reads; a pick is what adds most to the importance-weighted cover.

    Tiles share the budget by their importance. The official code rounds each share down, to 1 at least,
    so that tokens are lost; here largest remainders meet the budget. It lets all 77 rows of CLIP's text
    tower take part; here only those of the question do. At padding the smoothing has fewer neighbours
    [ours].

    Paper: "EADP" (arXiv 2607.02484, ECCV 2026). Code: SJTU-DeepVisionLab/EADP at e1a0880, no licence
    stated; this is written from the maths.

    Attributes:
        text_score: "aligned". Likeness in the space that image and text share [code, LLaVA]; or
            "similarity", of the features to the question's tokens as the language model reads both
            [code, Qwen], which needs no text tower.
        alpha: 0.5. Weight of the question as a whole against its pointed tokens [code].
        pointed: 0.2. Share of the tokens that are, at least one [code].
        sharpness: 100.0. Factor of cosines in the entropies [code].
        temperature: 0.01. Of the weights of pointed tokens: practically one of them counts [code].
        sigma: 1.0. Width of the 3 x 3 Gaussian [code].
        beta: 1.0. Power of importance [code, LLaVA]; 2.0 in the scripts for Qwen [code].
        rounding: "exact". Shares of tiles by largest remainders [ours], or down, as "official" [code].
        layer: "read". Layer whose hidden states are projected into the shared space, behind the tower's
            final norm [code].
        scope: "tile". A tile's patches are one set [code], or those of the whole "image" [ours], up to
            4,096.
    """

    text_score: str = "aligned"
    alpha: float = 0.5
    pointed: float = 0.2
    sharpness: float = 100.0
    temperature: float = 0.01
    sigma: float = 1.0
    beta: float = 1.0
    rounding: str = "exact"
    layer: int | float | str = "read"
    scope: str = dataclasses.field(default="tile", kw_only=True)

    name: ClassVar[str] = "eadp"
    paper: ClassVar[str] = "arXiv 2607.02484"
    pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.one_of("text_score", self.text_score, ("aligned", "similarity"))
        _fields.number("alpha", self.alpha, 0, 1)
        _fields.number("pointed", self.pointed, 0, 1)
        _fields.number("sharpness", self.sharpness, 0)
        _fields.number("temperature", self.temperature, 0)
        _fields.number("sigma", self.sigma, 0.01)
        _fields.number("beta", self.beta, 0)
        _fields.one_of("rounding", self.rounding, ("exact", "official"))
        _fields.layer("layer", self.layer)

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """With the official rounding tokens are lost, or added where a tile would get none."""
        return self.rounding == "exact"

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        if self.text_score == "similarity":
            return {"question_tokens": SignalRequest("question_tokens")}
        return {
            "patch_embedding": SignalRequest("patch_embedding", self.layer, norm=True),
            "text_embedding": SignalRequest("text_embedding"),
            "text_sequence": SignalRequest("text_sequence"),
        }

    def importance(self, batch: ImageBatch) -> Tensor:
        """Float32 `[S, N]`, not negative."""
        tables = batch.tables
        if self.text_score == "aligned":
            rows = batch.signal("patch_embedding")
            tokens, real, counts = text_rows(batch, "text_sequence")
            question = torch.stack([image.signal("text_embedding") for image in batch.images])
            whole = question.to(rows.device, non_blocking=True)[tables.image]
        else:
            rows = batch.features
            tokens, real, counts = text_rows(batch, "question_tokens")
            whole = tokens.float().sum(1)  # as long as it points where the mean does
        some = [max(1, math.floor(self.pointed * n + 1e-9)) for n in counts.tolist()]
        fit = pointed_relevance(
            rows,
            whole,
            tokens,
            real,
            to_device(some, rows)[tables.image],
            tables.valid,
            self.alpha,
            self.sharpness,
            self.temperature,
        )
        image, valid = (batch.padded(x, 0).flatten(1) for x in (fit, tables.valid))
        scaled = batch.unpadded(unit_range(image, valid, low=1e-6, high=1e-6))
        smooth = smoothed(scaled, tables.valid, batch.patch_grid, self.sigma)
        return (smooth**self.beta).masked_fill(~tables.valid, 0)

    def candidates_by(self, batch: ImageBatch, importance: Tensor) -> Candidates:
        """Tiles with their shares of the budget, or the images."""
        if self._parts(batch.images[0]) == 0:
            return self.candidates(batch)
        sums = to_host(importance.sum(1)).double()
        among = self.candidates(batch, sums)
        if self.exact:
            return among
        each = sums.split(batch.tiles)
        wanted = torch.cat([n * s / s.sum() for n, s in zip(batch.budgets, each, strict=True)])
        counts = wanted.floor().long().clamp(min=1)
        return dataclasses.replace(
            among, counts=torch.minimum(counts, torch.tensor(batch.available))
        )

    def pick(self, batch: ImageBatch) -> Picks:
        importance = self.importance(batch)
        among = self.candidates_by(batch, importance)
        cover = (1 + cosines(among.of(batch.features), among.valid)) / 2
        return among.pick("cover", cover, demand=among.of(importance))
