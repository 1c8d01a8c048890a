"""What methods need that are guided by a question: a made-up text encoder, and a tokenizer."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from vtc.methods.asks_text import AsksText
from vtc.plugins.model.signals import TEXT
from vtc.registry import create_method, method_class

QUESTION = "what is it"
WIDTH = 16


class Encoder:
    """A made-up space that text and patches share, with all that methods read of a text.

    Args:
        width: of the vision tower.
    """

    def __init__(self, width: int) -> None:
        self.shared = torch.randn(width, WIDTH, generator=torch.Generator().manual_seed(5))

    def embed(self, text: str) -> Tensor:
        return self._rows(1, len(text))[0]

    def segments(self, text: str) -> Tensor:
        return self._rows(2, len(text))

    def sequence(self, text: str) -> Tensor:
        return self._rows(len(text.split()), len(text))

    def project(self, hidden: Tensor) -> Tensor:
        return hidden.float() @ self.shared.to(hidden.device)

    @staticmethod
    def _rows(count: int, seed: int) -> Tensor:
        return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@functools.cache
def tokenizer() -> Any:
    """Words of the question for ids of the tiny models."""
    words = {"<unk>": 0, **{word: 20 + i for i, word in enumerate(QUESTION.split())}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


class Scorer(torch.nn.Module):
    """A scorer for features of any width, whose factors hang on features, demand and neighbours."""

    def forward(self, features: Tensor, demand: Tensor, overview: Tensor, valid: Tensor) -> Tensor:
        length = features.float().norm(dim=-1).masked_fill(~valid, 0)
        mean = length.sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
        return (length - mean).clamp(-2, 2) + 0.5 * overview - demand


def reads_text(name: str) -> bool:
    """Whether the method, with its default options, reads what is asked."""
    return any(r.kind in TEXT for r in create_method(name).requests().values())


def options(name: str, width: int) -> dict[str, Any]:
    """What a method needs that is asked something or was trained; nothing for others."""
    if name == "learned":
        return {"scorer": Scorer()}
    if not issubclass(method_class(name), AsksText):
        return {}
    return {"question": QUESTION, "text_encoder": Encoder(width)}
