"""`AsksText`: what all methods have in common that are guided by a question."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.errors import VTCError
from vtc.functional.ragged import to_device
from vtc.methods import _fields
from vtc.methods.base import Method


@dataclass
class AsksText(Method):
    """A method that is guided by what is asked; whoever runs it supplies the text and the encoder.

    Attributes:
        question: None. The text itself, instead of one found in the prompt.
        text_source: "question". Text that guides: the last user turn, or "official": the prompt's first
            line.
        text_encoder: None. Where the text tower comes from when the model has none: a hub id, a folder
            or a pair of callables `(embed, project)`. Read where `text_embedding` is requested.
    """

    question: str | None = dataclasses.field(default=None, kw_only=True)
    text_source: str = dataclasses.field(default="question", kw_only=True)
    text_encoder: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.one_of("text_source", self.text_source, ("question", "official"))
        if not isinstance(self.question, (str, type(None))):
            raise VTCError(f"question: got {self.question!r}, allowed are text and None")

    def reworded(self, text: str) -> str:
        """What is handed to the tokenizer in place of the question; the question itself by default."""
        return text


def text_rows(batch: ImageBatch, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """A signal of the question with a row a token or piece, for every tile.

    Returns:
        `[S, L, D]`, 0 behind each question's last row; bool `[S, L]`, which rows are real; and how many
        each image has, `[B]` on the CPU.
    """
    rows = [image.signal(name) for image in batch.images]
    lengths = [len(each) for each in rows]
    counts, column = torch.tensor(lengths), torch.arange(max(1, *lengths))
    here = column < counts[:, None]
    # what is behind the last row reads a row of zeros
    place = torch.where(here, column + (counts.cumsum(0) - counts)[:, None], counts.sum())
    values = torch.cat([*rows, rows[0].new_zeros(1, rows[0].shape[1])])
    index = to_device(place, batch.tables.image)[batch.tables.image]
    real = index < len(values) - 1
    return values.to(index.device, non_blocking=True)[index], real, counts
