"""What is checked: a model with prompts and a setting, or a tiny one with prompts of its own."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch

from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.plugins.hf import apply, tiny
from vtc.plugins.hf.checks.outcome import NotRun, first_line
from vtc.plugins.hf.selfcheck import checking
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.inputs import PIXELS
from vtc.plugins.model.question import with_question
from vtc.registry import create_method

#: how far logits may be apart, as a share of their spread: sums in another order, nothing more
LIMITS = {torch.float64: 1e-6, torch.float32: 5e-3, torch.float16: 0.05, torch.bfloat16: 0.15}


@dataclass
class Subject:
    """A model, prompts with images for it, and the setting to check.

    Attributes:
        name: of the model.
        model: not compressed; afterwards it is as it was.
        rows: prompts, each as a batch of one without padding.
        batch: the same prompts in one batch, padded on the left; or why there is none.
        method: what to put on the model.
        positions: position policy; None for the model's default.
        processor: for methods that read text.
        steps: tokens to decode.
    """

    name: str
    model: Model
    rows: list[dict[str, Any]]
    batch: dict[str, Any] | str
    method: Method
    positions: str | None = None
    processor: Any = None
    steps: int = 4

    def compressed(self, **changes: Any) -> apply.Handle:
        """A block with the method on the model, some of its fields changed."""
        method = replace(self.method, **changes) if changes else self.method
        # or it would read tokens that are appended
        method = with_question(method, "what is in the picture?")
        with checking():
            return apply.plan(
                self.model, method, processor=self.processor, positions=self.positions
            )

    @property
    def limit(self) -> float:
        """How far logits may be apart."""
        return LIMITS.get(getattr(self.model, "dtype", torch.float32), LIMITS[torch.bfloat16])

    @functools.cached_property
    def answer(self) -> list[int]:
        """Tokens to decode that are no placeholders and end nothing: some of the first prompt's text."""
        config, ids = self.model.config, self.rows[0]["input_ids"][0].tolist()
        barred = {getattr(config, f"{modality}_token_id", None) for modality in PIXELS}
        for settings in (self.model.generation_config, config.get_text_config()):
            for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
                value = getattr(settings, name, None)
                barred.update(value if isinstance(value, (list, tuple)) else [value])
        words = [token for token in reversed(ids) if token not in barred and token >= 0]
        if not words:
            raise NotRun("the prompt has no text")
        return [words[step % len(words)] for step in range(self.steps)]


def refused(subject: Subject) -> str | None:
    """Why the setting cannot be put on the model, None when it can."""
    try:
        with subject.compressed():
            return None
    except VTCError as error:
        return first_line(error)
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"


#: sizes of the images of each prompt for tiny models
ONE: tiny.Rows = [[(40, 60)]]
TWO: tiny.Rows = [[(40, 60)], [(60, 24), (32, 32)]]


def tiny_subject(
    name: str,
    model: Model,
    method: Method | None = None,
    positions: str | None = None,
    rows: tiny.Rows = TWO,
    steps: int = 4,
) -> Subject:
    """A tiny model with prompts of its own.

    Args:
        method: None for half of the tokens, evenly.
        rows: the images of each prompt; of a single one no batch is made.
    """
    alone = [tiny.prompts(model, [row], first=index) for index, row in enumerate(rows)]
    batch = tiny.prompts(model, rows) if len(rows) > 1 else "there is only one prompt"
    method = method or create_method("uniform", retention=0.5)
    return Subject(name, model, alone, batch, method, positions, steps=steps)
