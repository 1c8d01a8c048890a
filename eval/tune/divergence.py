"""How far a setting's distribution is from the full model's, along the full model's own answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vtc.errors import VTCError
from vtc.eval.accuracy.runner import Row
from vtc.eval.common.records import Answer
from vtc.eval.common.settings import Setting
from vtc.eval.tune.ask import Asker
from vtc.eval.tune.space import Candidate

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class DivergenceAsker(Asker):
    """Has each setting read the full model's own answer, and says as text how far its next-token
    distributions are from the full model's: the mean over the tokens of the answer, and what comes
    behind them, of the Jensen-Shannon divergence in bits. 0 is the same, 1 has nothing in common.

    Batches hold one question each: answers differ in length.

    Attributes:
        full: the full model's answer by id of the question.
    """

    full: Callable[[str], Answer | None] = field(default=lambda item: None)
    _known: dict[str, Any] = field(default_factory=dict, init=False)  # of one question

    def _generate(self, setting: Setting, rows: Sequence[Row]) -> list[Answer]:
        (row,) = rows
        if isinstance(setting, Candidate) and row.item.id not in self._known:
            # before anything is on the model
            self._known = {row.item.id: self._logits(row, self._prepared(setting, rows))}
        return super()._generate(setting, rows)

    def said(self, setting: Setting, rows: Sequence[Row], inputs: Any) -> list[str]:
        """As of the base class; of the full model its answers."""
        if not isinstance(setting, Candidate):
            return super().said(setting, rows, inputs)
        (row,) = rows
        return [f"{divergence(self._known[row.item.id], self._logits(row, inputs)):.6f}"]

    def _logits(self, row: Row, inputs: Any) -> Tensor:
        """Of the full model's answer and what comes behind it, `[tokens + 1, vocabulary]`."""
        import torch

        answer = self.full(row.item.id)
        more, count = self._with(inputs, (answer.prediction if answer else "") or "")
        with torch.inference_mode():
            logits = self.loaded.model(**more, logits_to_keep=count + 1).logits
        return logits[0, -count - 1 :]

    def _with(self, inputs: Any, text: str) -> tuple[dict[str, Any], int]:
        """Inputs with the answer behind the prompt, and how many tokens that has."""
        import torch

        tokenizer = getattr(self.loaded.processor, "tokenizer", self.loaded.processor)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        more = dict(inputs)
        prompt = more["input_ids"]
        ids = ids.to(prompt).reshape(1, -1)
        more["input_ids"] = torch.cat([prompt, ids], 1)
        for name, value in inputs.items():
            if name != "input_ids" and getattr(value, "shape", None) == prompt.shape:
                fill = torch.ones_like(ids) if name == "attention_mask" else torch.zeros_like(ids)
                more[name] = torch.cat([value, fill.to(value)], 1)
        return more, ids.shape[1]


def divergence(one: Tensor, two: Tensor) -> float:
    """Mean Jensen-Shannon divergence in bits of the distributions of two sets of logits `[n, vocab]`.

    Raises:
        VTCError: the logits are no distribution, such as those that overflow in half precision.
    """
    p, q = one.double().softmax(-1), two.double().softmax(-1)
    if p.isnan().any() or q.isnan().any():
        raise VTCError("logits: got values that are no numbers")
    middle = ((p + q) / 2).clamp_min(1e-300).log()
    both = [(x * (x.clamp_min(1e-300).log() - middle)).sum(-1) for x in (p, q)]
    return max(0.0, float((both[0] + both[1]).mean()) / 2 / math.log(2))
