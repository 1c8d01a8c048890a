"""MMR: important patches that are not like those already picked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.batch import ImageBatch
from vtc.functional.greedy import unit_range
from vtc.methods import _fields
from vtc.methods.asks_text import AsksText
from vtc.methods.greedy import Greedy, Picks
from vtc.registry import register_method
from vtc.tokens import SignalRequest


@register_method
@dataclass
class Mmr(AsksText, Greedy):
    """Maximal marginal relevance: every pick weighs importance against likeness to the picks before.

    The first pick is the most important patch; every next one has the largest
    `balance * importance - (1 - balance) * (largest cosine to a pick)`, importance scaled to [0, 1] over
    the image, cosines of the features that the language model reads.

    IDPruner takes importance from a scorer that it trains for each model; without one this is its
    selection with an importance that every tower has [ours]. It rounds the number of tokens to the
    nearest; here budgets round down.

    Paper: "IDPruner: Harmonizing Importance and Diversity in Visual Token Pruning for MLLMs"
    (arXiv 2602.13315). Code: Tencent/AngelSlim at 67394ce, Apache-2.0.

    Attributes:
        balance: 0.5. Weight of importance against likeness, from 0 to 1 [code].
        importance: "attention". What CLS attends to, or where there is no CLS the attention received;
            "received" everywhere; "norm" of the features; or likeness to the "question" [ours].
        together: 1. Picks that are ranked at once, before likeness is looked at again [code].
        layer: "read". Layer of the attention: the one that the features come from [ours].
        scope: "image". Patches compete with all of their image [code], or of their "tile" [ours].
    """

    balance: float = 0.5
    importance: str = "attention"
    together: int = 1
    layer: int | float | str = "read"

    name: ClassVar[str] = "mmr"
    paper: ClassVar[str] = "arXiv 2602.13315"

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.number("balance", self.balance, 0, 1)
        _fields.one_of("importance", self.importance, ("attention", "received", "norm", "question"))
        _fields.whole("together", self.together, 1)
        _fields.layer("layer", self.layer)

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        if self.importance == "norm":
            return {}
        if self.importance == "question":
            return {"text_similarity": SignalRequest("text_similarity")}
        cls = has_cls and self.importance == "attention"
        kind = "cls_attention" if cls else "attention_received"
        return {"importance": SignalRequest(kind, self.layer)}

    def score(self, batch: ImageBatch) -> Tensor:
        """Float32 `[S, N]`, the importance of every patch, not scaled."""
        if self.importance == "norm":
            return batch.features.float().norm(dim=-1)
        name = "text_similarity" if self.importance == "question" else "importance"
        return batch.signal(name).float()

    def weight(self, batch: ImageBatch) -> Tensor:
        """`[P, n]`, importance scaled to [0, 1] over all that competes."""
        among = self.candidates(batch)
        return unit_range(among.of(self.score(batch)), among.valid, high=1e-6)

    def pick(self, batch: ImageBatch) -> Picks:
        among = self.candidates(batch)
        options = {"balance": self.balance, "together": self.together}
        return among.pick("mmr", among.of(batch.features), self.weight(batch), **options)
