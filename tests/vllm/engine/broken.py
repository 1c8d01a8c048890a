"""Methods that fail inside a worker, each in a way of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

import vtc
from vtc.tokens import keep_patches


@vtc.register_method
@dataclass
class Raises(vtc.Method):
    """Raises what nobody expects."""

    name: ClassVar[str] = "broken_raises"

    def compress(self, tokens):
        raise RuntimeError("out of everything")


@vtc.register_method
@dataclass
class TooFew(vtc.Method):
    """Keeps fewer tokens than it said."""

    name: ClassVar[str] = "broken_count"

    def compress(self, tokens):
        keep = torch.zeros_like(tokens.valid)
        keep[0, 0] = True
        return keep_patches(tokens, keep)


@vtc.register_method
@dataclass
class NotANumber(vtc.Method):
    """Returns features that are no numbers."""

    name: ClassVar[str] = "broken_nan"

    def compress(self, tokens):
        out = vtc.create_method("uniform", tokens=self.tokens).compress(tokens)
        return out.replace(features=out.features * float("nan"))
