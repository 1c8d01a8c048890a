"""The loss of the first stage: each word that is true of a picture should be near some patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .questions import answers


class Seen(NamedTuple):
    """What is true of a picture; see `scene.Scene`."""

    words: Sequence[str]
    colors: bool
    garments: bool


class Shown(nn.Module):
    """Compares visual tokens with words.

    The nearness of a word is a soft maximum over patches of the cosine between visual token and the
    word's embedding. Visual tokens are held at the length of words.
    """

    def __init__(self, table: Tensor, tokenizer: Any) -> None:
        super().__init__()
        read = [word for word in answers("reading") if word.isalpha()]
        # "fish" is a thing and a word on signs; both are true of a picture that shows either
        self.words = list(
            dict.fromkeys([*answers("naming"), *answers("color"), *read, *"0123456789"])
        )
        self.place = {word: place for place, word in enumerate(self.words)}
        ids = [tokenizer(word, add_special_tokens=False).input_ids for word in self.words]
        vectors = torch.stack([table[one].float().mean(0) for one in ids])
        centre = table[:-1].float().mean(0)
        self.vectors, self.centre = F.normalize(vectors - centre, dim=-1), centre
        self.length = float((table[:-1].float() - centre).norm(dim=-1).mean())
        self.scale = nn.Parameter(torch.full((len(self.words),), 16.0))
        self.offset = nn.Parameter(torch.full((len(self.words),), -6.0))

    def forward(self, visual: Tensor, rows: Sequence[Seen]) -> Tensor:
        visual = visual.float() - self.centre
        norms = visual.norm(dim=-1)
        near = (visual / norms[..., None].clamp(min=1e-6)) @ self.vectors.T
        near = torch.logsumexp(20 * near, 1) / 20 - math.log(near.shape[1]) / 20
        wanted, known = (table.to(visual.device) for table in self.labels(rows))
        loss = F.binary_cross_entropy_with_logits(
            near * self.scale + self.offset, wanted, reduction="none"
        )
        return (loss * known).sum() / known.sum() + 0.1 * ((norms / self.length - 1) ** 2).mean()

    def labels(self, rows: Sequence[Seen]) -> tuple[Tensor, Tensor]:
        """Which words are true of each picture, and which of them it is known of."""
        wanted = torch.zeros(len(rows), len(self.words))
        known = torch.ones(len(rows), len(self.words))
        colors, garments = ([self.place[w] for w in answers(n)] for n in ("color", "garment"))
        for row, seen in enumerate(rows):
            if not seen.colors:
                known[row, colors] = 0  # what is not dyed has a colour too
            if not seen.garments:
                known[row, garments] = 0  # one may lie behind
            for word in seen.words:
                wanted[row, self.place[word]] = known[row, self.place[word]] = 1
        return wanted, known
