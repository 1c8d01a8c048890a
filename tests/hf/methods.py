"""Test-only methods: small, deterministic, each exercising one thing that a method may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.methods.asks_text import AsksText
from vtc.methods.base import Method
from vtc.tokens import (
    CompressedTokens,
    MergeIndex,
    SignalRequest,
    VisualTokens,
    gather_tokens,
    keep_patches,
    packed_index,
)


def keep_best(method: Method, tokens: VisualTokens, scores: Tensor) -> CompressedTokens:
    """Keep the best patches by `scores [T, N]`."""
    valid = tokens.valid.to(scores.device)
    scores = scores.masked_fill(~valid, -torch.inf).flatten()
    keep = torch.zeros_like(valid).flatten()
    keep[scores.topk(method.budget(tokens)).indices] = True
    return keep_patches(tokens, keep.view_as(tokens.valid))


@dataclass
class Norms(Method):
    """Keeps the patches of largest norm, behind the projector: depends on the content."""

    name: ClassVar[str] = "norms"

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        return keep_best(self, tokens, tokens.features.detach().float().norm(dim=-1))


@dataclass
class Early(Norms):
    """The same before the projector."""

    name: ClassVar[str] = "early"
    stage: ClassVar[Literal["vision", "language"]] = "vision"


@dataclass
class Ragged(Method):
    """Keeps as many patches as are longer than the mean: rows of a batch keep different counts."""

    name: ClassVar[str] = "ragged"
    adaptive: ClassVar[bool] = True

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        norms = tokens.features.detach().float().norm(dim=-1)
        valid = tokens.valid.to(norms.device)
        return keep_patches(tokens, (norms > norms[valid].mean()) & valid)


@dataclass
class Pairs(Method):
    """Averages neighbours in reading order, two by two; separators go."""

    name: ClassVar[str] = "pairs"

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        device = tokens.features.device
        where = packed_index(tokens).to(device)
        flat = where.flatten()
        source = torch.argsort(torch.where(flat < 0, flat.max() + 1, flat), stable=True)
        source = source[: tokens.num_patches // 2 * 2]
        pairs = source.view(-1, 2)
        features = tokens.features.flatten(0, 1)
        patches = tokens.features.shape[1]
        return CompressedTokens(
            features=features[pairs].mean(1),
            tile=pairs[:, 0] // patches,
            patch=pairs[:, 0] % patches,
            anchor=flat[pairs[:, 1]],
            weight=torch.full((len(pairs),), 2.0, device=device),
            merged=MergeIndex(
                torch.arange(len(pairs), device=device).repeat_interleave(2),
                source,
                torch.full((len(source),), 0.5, device=device),
                len(pairs),
                flat.numel(),
            ),
        )


@dataclass
class Backwards(Method):
    """Hands every third token on in reversed order, each with its own position."""

    name: ClassVar[str] = "backwards"

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        anchor = torch.arange(0, len(tokens.layout), 3).flip(0)
        layout = tokens.layout
        return gather_tokens(tokens, layout.tile[anchor], layout.patch[anchor], anchor)


@dataclass
class Attended(Method):
    """Keeps what the CLS token attends to; `layer` picks the encoder layer."""

    layer: int | float = -2

    name: ClassVar[str] = "attended"
    signals: ClassVar[tuple[str, ...]] = ("cls_logits",)

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        return {
            name: SignalRequest(request.kind, self.layer)
            for name, request in super().requests(has_cls).items()
        }

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        (scores,) = tokens.signals.values()
        return keep_best(self, tokens, scores.detach())


@dataclass
class Spy(Method):
    """Keeps the front of the image and remembers every `VisualTokens` it was given."""

    wanted: Any = ()
    layer: int | float = -1

    name: ClassVar[str] = "spy"
    seen: ClassVar[list[VisualTokens]] = []

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        return {kind: SignalRequest(kind, self.layer) for kind in self.wanted}

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        Spy.seen.append(tokens)
        return keep_best(
            self, tokens, -torch.arange(tokens.valid.numel()).view_as(tokens.valid).float()
        )


@dataclass
class Breaks(Method):
    """Works for `good` images, then raises `error`."""

    good: int = 1
    error: Any = VTCError("method: broken on purpose")

    name: ClassVar[str] = "breaks"

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        if self.good == 0:
            raise self.error
        self.good -= 1
        return keep_best(self, tokens, tokens.features.detach().norm(dim=-1))


@dataclass
class Guided(AsksText):
    """Keeps the patches most like the question; remembers the questions' embeddings."""

    name: ClassVar[str] = "guided"
    signals: ClassVar[tuple[str, ...]] = ("text_embedding", "patch_embedding")
    without_cls: ClassVar[Mapping[str, str]] = {}

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        scores = tokens.signal("patch_embedding") @ tokens.signal("text_embedding")
        return keep_best(self, tokens, scores.detach())


#: one of each way to shorten an image, for tests that do not care which
KINDS: dict[str, Method] = {
    "norms": Norms(retention=0.5),
    "early": Early(retention=0.4),
    "ragged": Ragged(),
    "pairs": Pairs(retention=0.5),
    "backwards": Backwards(retention=0.5),
    "attended": Attended(retention=0.3),
}
