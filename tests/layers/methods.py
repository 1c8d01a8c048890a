"""Small methods inside the language model, each exercising one thing that a method may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.layers import Choice, LayerView, Seen
from vtc.methods.layer_method import LayerMethod


def best(seen: Seen, score: Tensor) -> Tensor:
    """Text, and of each image as many tokens as it has a budget for, by score; ties to the lower."""
    keep = seen.image < 0
    for number in range(seen.counts.shape[1]):
        mine = seen.image == number
        ranked = score.masked_fill(~mine, -torch.inf).argsort(dim=1, descending=True, stable=True)
        keep |= (ranked.argsort(dim=1) < seen.counts[:, number, None]) & mine
    return keep


@dataclass
class Last(LayerMethod):
    """FastV's rule: the last token's attention in the layer in front of the cut."""

    layer: int = 2
    share: float = 0.5

    name: ClassVar[str] = "last"
    reads_before: ClassVar[bool] = True

    def cuts(self, depth: int) -> tuple[int, ...]:
        return (self.layer,)

    def counts(self, tokens: int, depth: int) -> tuple[int, ...]:
        return (round(tokens * self.share),)

    def choose(self, view: LayerView) -> Choice:
        seen = view.seen
        score = view.attention(seen.asking, "before").mean(1).amax(1)
        return Choice(best(seen, score))


@dataclass
class Steps(LayerMethod):
    """PyramidDrop's rule: fewer at every cut, by the attention of the layer behind it."""

    layers: tuple[int, ...] = (1, 2, 4)
    shares: tuple[float, ...] = (0.75, 0.5, 0.25)

    name: ClassVar[str] = "steps"

    def cuts(self, depth: int) -> tuple[int, ...]:
        return self.layers

    def counts(self, tokens: int, depth: int) -> tuple[int, ...]:
        return tuple(int(tokens * share) for share in self.shares)

    def choose(self, view: LayerView) -> Choice:
        seen = view.seen
        return Choice(best(seen, view.attention(seen.asking, "here", mean=True).amax(1)))


@dataclass
class DropAll(LayerMethod):
    """Drops every visual token in front of a layer."""

    layer: int = 3

    name: ClassVar[str] = "drop_all"
    reads_question: ClassVar[bool] = False

    def cuts(self, depth: int) -> tuple[int, ...]:
        return (self.layer,)

    def counts(self, tokens: int, depth: int) -> tuple[int, ...]:
        return (0,)

    def choose(self, view: LayerView) -> Choice:
        return Choice(view.seen.image < 0)


@dataclass
class Merge(Last):
    """Keeps every other token of an image and adds half of what follows it; remembers embeddings."""

    name: ClassVar[str] = "merge"
    reads_before: ClassVar[bool] = False

    def start(self, seen: Seen, embeds: Tensor) -> Tensor:
        return embeds[..., :2]

    def choose(self, view: LayerView) -> Choice:
        seen = view.seen
        assert seen.marks is not None and seen.marks.shape[2] == 2
        visual = seen.image >= 0
        odd = ((seen.place[..., 1] + seen.place[..., 2]) % 2 == 1) & visual
        following = torch.roll(view.hidden, -1, 1)
        gone = torch.roll(odd, -1, 1) & visual & ~odd
        values = torch.where(gone[..., None], view.hidden + 0.5 * following, view.hidden)
        return Choice(~odd, values)
