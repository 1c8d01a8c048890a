"""What a generator is told to make: classes, features of a text, or a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.errors import VTCError


@dataclass(frozen=True)
class Condition:
    """What to make.

    Attributes:
        labels: int64 `[B]`, None without classes; `classes` itself stands for no class.
        context: features in front of the keys, one `[B, T, C]` a layer; None without.
        valid: bool `[B, T]`, False for padding of the context; a row without any True has no context.
            None for all True.
        text: int64 `[B, T]` in place of a context, for a model with words; negative is padding.
    """

    labels: Tensor | None = None
    context: tuple[Tensor, ...] | None = None
    valid: Tensor | None = None
    text: Tensor | None = None

    @property
    def rows(self) -> int | None:
        """B, None where neither labels nor a context tell."""
        if self.labels is not None:
            return len(self.labels)
        return None if self.context is None else len(self.context[0])

    def seen(self) -> Tensor:
        """`valid` as bool `[B, T]`, also where it is None; for a condition with a context."""
        assert self.context is not None
        if self.valid is None:
            return self.context[0].new_ones(self.context[0].shape[:2], dtype=torch.bool)
        return self.valid.bool()

    def followed_by(self, null: Condition) -> Condition:
        """These rows, then as many of `null`, which may have one for all and a context of any length.

        Raises:
            VTCError: one has labels or a context and the other has not, or another number of rows.
        """
        if (self.labels is None) != (null.labels is None) or (self.context is None) != (
            null.context is None
        ):
            raise VTCError("null: labels and context have to be there where the condition has them")
        if null.rows not in (1, self.rows):
            raise VTCError(f"null: got {null.rows} rows, allowed are 1 and {self.rows}")

        def join(a: Tensor, b: Tensor) -> Tensor:
            return torch.cat([a, b.expand(len(a), *b.shape[1:])])

        labels = context = valid = None
        if self.labels is not None and null.labels is not None:
            labels = join(self.labels, null.labels)
        if self.context is not None and null.context is not None:
            longer = null.context[0].shape[1] - self.context[0].shape[1]
            ours, theirs = max(longer, 0), max(-longer, 0)  # positions to add
            context = tuple(
                join(F.pad(a, (0, 0, 0, ours)), F.pad(b, (0, 0, 0, theirs)))
                for a, b in zip(self.context, null.context, strict=True)
            )
            valid = join(F.pad(self.seen(), (0, ours)), F.pad(null.seen(), (0, theirs)))
        return Condition(labels, context, valid)
