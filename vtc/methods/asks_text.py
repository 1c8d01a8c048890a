"""`AsksText`: what all methods have in common that are guided by a question."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vtc.errors import VTCError
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
