"""MMTok: patches that cover the question and the picture."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.greedy import shares_of
from vtc.functional.grids import squared_padding
from vtc.functional.ragged import to_device
from vtc.methods import _fields
from vtc.methods.asks_text import AsksText, text_rows
from vtc.methods.greedy import Candidates, Greedy, Picks
from vtc.registry import register_method
from vtc.tokens import SignalRequest

#: words that say nothing of what is looked for, and ends of prompts that are not the question [code]
_EMPTY = frozenset(
    "a an the is are was were be been being have has had do does did it they he she we you i what where "
    "when why how who which and or but so if then question answer to for with by from at into onto "
    "upon".split()
)
_ENDS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)


@register_method
@dataclass
class MMTok(AsksText, Greedy):
    """Keeps the patches that cover both the question's tokens and all patches best.

    A question token divides itself among the patches by a softmax of cosines (features and token as the
    language model reads them), and so does every patch (features before the projector). A set covers
    each as well as the best of its members; a pick is the patch that adds most to
    `mean over the question's tokens + alpha * mean over patches`.

    The official code asks one question of all images of a batch, un-pads nothing and drops newlines;
    here every image has its question, padding takes no part, and newlines stay [ours]. The agent of the
    paper is in neither.

    Paper: Dong et al., "MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs"
    (arXiv 2508.18264). Code: Ironieser/MMTok at d1522cd, Apache-2.0.

    Attributes:
        alpha: 0.5. Weight of the picture against the question [code].
        text_temperature: 0.02. Of the question's softmax [code, LLaVA]; 0.01 on Qwen [code].
        vision_temperature: 0.2. Of the patches' [code].
        words: "content". The question without articles, verbs of being, pronouns and the like, and
            without two prompt endings of LLaVA [code, LLaVA]; or "all" of it [code, Qwen].
        squared: False. Whether the processor pads images to squares, as LLaVA-1.5's own does: patches
            wholly in that padding are then picked last [code].
        scope: "tile". A tile's patches are one set [code], or those of the whole "image" [ours], up to
            4,096.
    """

    alpha: float = 0.5
    text_temperature: float = 0.02
    vision_temperature: float = 0.2
    words: str = "content"
    squared: bool = False
    scope: str = dataclasses.field(default="tile", kw_only=True)

    name: ClassVar[str] = "mmtok"
    paper: ClassVar[str] = "arXiv 2508.18264"
    pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.number("alpha", self.alpha, 0)
        _fields.number("text_temperature", self.text_temperature, 1e-4)
        _fields.number("vision_temperature", self.vision_temperature, 1e-4)
        _fields.one_of("words", self.words, ("content", "all"))
        _fields.flag("squared", self.squared)

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        return {
            "projector_input": SignalRequest("projector_input", "read"),
            "question_tokens": SignalRequest("question_tokens"),
        }

    def reworded(self, text: str) -> str:
        """The words that say what is looked for; the text itself where there are none."""
        if self.words == "all":
            return text
        for end in _ENDS:
            text = text.replace(end, "")
        words = [word for word in re.findall(r"\w+", text) if word.lower() not in _EMPTY]
        return " ".join(words) or text

    def cover(self, batch: ImageBatch, among: Candidates) -> tuple[Tensor, Tensor]:
        """How well each patch covers the question's tokens and each patch, `[P, n, L + n]`, and how much
        each of these counts, `[P, L + n]`."""
        valid, seen = among.valid, among.of(batch.signal("projector_input"))
        words, real, _ = text_rows(batch, "question_tokens")
        first = batch.tables.first[among.image]  # all tiles of an image have its question
        words, real = words[first], real[first].float()
        rows = [
            shares_of(words, among.of(batch.features), valid, self.text_temperature),
            shares_of(seen, seen, valid, self.vision_temperature),
        ]
        counts = [
            real / real.sum(1, keepdim=True).clamp(min=1),
            self.alpha * valid / valid.sum(1, keepdim=True).clamp(min=1),
        ]
        return torch.cat(rows, 2), torch.cat(counts, 1)

    def pick(self, batch: ImageBatch) -> Picks:
        among = self.candidates(batch)
        rows, demand = self.cover(batch, among)
        weight = None
        if self.squared:
            outside = [
                squared_padding(image.patch_grid, image.image_size) for image in batch.images
            ]
            tiles = to_device(torch.stack(outside), rows)[batch.tables.image]
            weight = 1 - among.of(tiles.float())
        return among.pick("cover", rows, weight, demand=demand)
