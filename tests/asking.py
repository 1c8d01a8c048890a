"""What methods need that are guided by a question: a made-up text encoder, and a tokenizer."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from vtc.methods.asks_text import AsksText
from vtc.registry import method_class

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


def options(name: str, width: int) -> dict[str, Any]:
    """The options with which a method is asked something; none of one that asks nothing."""
    if not issubclass(method_class(name), AsksText):
        return {}
    return {"question": QUESTION, "text_encoder": Encoder(width)}
