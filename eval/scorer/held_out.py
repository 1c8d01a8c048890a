"""What answers lose under selection, on images that nothing was learned from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import vtc
from vtc.eval.common.loading import Loaded
from vtc.eval.scorer.pictures import Picture
from vtc.eval.scorer.teach import Asked, answer_logits, asked
from vtc.methods._scorer import DemandScorer

#: strengths of a trained scorer that are tried; 0 is `coverage`
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: nats that are as good as none
LEAST = 1e-6


@dataclass(frozen=True)
class HeldOut:
    """Images with the answers of the uncompressed model and their distributions.

    Attributes:
        said: the answers, image by image.
        full: log-probabilities of their tokens, in half precision on the CPU.
    """

    loaded: Loaded
    said: Sequence[Asked]
    full: Sequence[Tensor]

    @classmethod
    def of(
        cls,
        loaded: Loaded,
        pictures: Sequence[Picture],
        longest: int,
        step: Callable[[], Any] = lambda: None,
    ) -> HeldOut:
        """Ask the uncompressed model about `pictures`."""
        said, full = [], []
        for picture in pictures:
            said.append(asked(loaded, picture.open(), picture.questions, longest))
            full.append(answer_logits(loaded, said[-1]).half().cpu())
            step()
        return cls(loaded, said, full)

    def divergence(self, method: vtc.Method) -> float:
        """Kullback-Leibler divergence of an answer token's distribution from that of the uncompressed
        model, in nats: mean over tokens, then over images."""
        total = 0.0
        with vtc.compress(self.loaded.model, method):
            for said, full in zip(self.said, self.full, strict=True):
                found = answer_logits(self.loaded, said)
                wanted = full.to(found.device).float()
                each = torch.nn.functional.kl_div(found, wanted, reduction="none", log_target=True)
                total += float(each.sum(-1).mean())
        return total / len(self.said)

    def strengthened(self, scorer: DemandScorer, retentions: Sequence[float]) -> dict[str, Any]:
        """Give a scorer the strength at which answers lose least, weaker on ties; the divergence at
        each strength."""
        found = {}
        for strength in STRENGTHS:
            scorer.strength = strength
            found[strength] = self.look(scorer, retentions)["divergence"]
        scorer.strength = min(found, key=lambda strength: (found[strength], strength))
        return {f"{strength:g}": value for strength, value in found.items()}

    def look(self, scorer: DemandScorer, retentions: Sequence[float]) -> dict[str, Any]:
        """A point of the learning curve: the divergence at each retention, and their geometric mean, so
        that budgets count alike although the smallest loses most."""
        each = {
            f"{share:g}": self.divergence(
                vtc.create_method("learned", retention=share, scorer=scorer)
            )
            for share in retentions
        }
        mean = sum(math.log(max(value, LEAST)) for value in each.values()) / len(each)
        return {"divergence": math.exp(mean), "at": each}
