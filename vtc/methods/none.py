"""No compression: the yardstick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.tokens import CompressedTokens, VisualTokens, keep_patches


@register_method
@dataclass
class NoCompression(Method):
    """Keeps every token, whatever the budget; runs through the plug-in like any other method."""

    name: ClassVar[str] = "none"
    default_retention: ClassVar[float] = 1.0

    def is_identity(self, tokens: VisualTokens) -> bool:
        return True

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        return keep_patches(tokens, torch.ones_like(tokens.valid))
