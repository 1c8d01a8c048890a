"""A `LayerView` made by hand from plain tensors: whole attention maps, no kernels, no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtc.layers import Heads, Seen, Which


@dataclass
class HandView:
    """See `vtc.layers.LayerView`.

    Attributes:
        tables: queries and keys by layer and whether they are rotated.
        states: hidden states behind the final norm.
        attended: what `attention` was asked for.
    """

    seen: Seen
    hidden: Tensor
    tables: Mapping[tuple[Which, bool], Heads] = field(default_factory=dict)
    states: Tensor | None = None
    entered: Tensor | None = None
    attended: list[Any] = field(default_factory=list)

    @property
    def before(self) -> Tensor:
        assert self.entered is not None
        return self.entered

    def normed(self) -> Tensor:
        assert self.states is not None
        return self.states

    def heads(self, layer: Which, rotary: bool = True) -> Heads:
        return self.tables[layer, rotary]

    def attention(
        self,
        rows: Tensor,
        layer: Which,
        *,
        rotary: bool = True,
        among: Tensor | None = None,
        mean: bool = False,
    ) -> Tensor:
        query, key, scale = self.heads(layer, rotary)
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        logits = (query.float() * scale) @ key.float().mT  # the whole map
        column = torch.arange(query.shape[2])
        seen = (column <= column[:, None]) & self.seen.valid[:, None]
        seen = seen if among is None else seen & among[:, None]
        maps = torch.softmax(logits.masked_fill(~seen[:, None], -torch.inf), -1).nan_to_num(0)
        out = maps.new_zeros(*query.shape[:2], rows.shape[1], query.shape[2])
        for b, some in enumerate(rows.tolist()):
            for r, row in enumerate(some):
                if row >= 0:
                    out[b, :, r] = maps[b, :, row]
        return out.mean(1) if mean else out


def seen_of(
    image: Tensor,
    counts: Tensor,
    *,
    valid: Tensor | None = None,
    asking: Tensor | None = None,
    place: Tensor | None = None,
    cut: int = 0,
    layer: int = 2,
    marks: Tensor | None = None,
) -> Seen:
    """A sequence, by default without padding, whose last token asks; images are lines of tokens."""
    valid = torch.ones_like(image, dtype=torch.bool) if valid is None else valid
    column = torch.arange(image.shape[1])
    if asking is None:
        asking = torch.where(valid, column, -1).amax(1, keepdim=True)
    if place is None:
        nth = torch.full_like(image, -1)
        for b, row in enumerate(image.tolist()):
            met: dict[int, int] = {}
            for s, number in enumerate(row):
                if number >= 0:
                    nth[b, s] = met[number] = met.get(number, -1) + 1
        zero = torch.where(image < 0, -1, 0)
        place = torch.stack([zero, zero, nth], -1)
    return Seen(cut, layer, image, place, valid, counts, asking, marks)


def rotated(x: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary embedding of `[B, H, S, d]` with the positions 0, 1, .., halves as in Llama."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = torch.arange(x.shape[2])[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)
