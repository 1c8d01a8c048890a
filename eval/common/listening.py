"""`Listener`: a method that drops nothing and remembers what methods would see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from vtc.methods.base import Method
from vtc.tokens import CompressedTokens, SignalRequest, VisualTokens, keep_patches


@dataclass
class Listener(Method):
    """Keeps every token and remembers the images with all signals that some methods read.

    Attributes:
        methods: whose signals; each signal is called as its request is written.
        heard: the images so far.
    """

    methods: Sequence[Method] = ()
    heard: list[VisualTokens] = field(default_factory=list)

    name: ClassVar[str] = "listener"
    exact: ClassVar[bool] = False

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        found = [request for m in self.methods for request in m.requests(has_cls).values()]
        return {str(request): request for request in found}

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        self.heard.append(tokens)
        return keep_patches(tokens, torch.ones_like(tokens.valid))
