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

    def positional(self, rows: Tensor, layer: Which) -> Tensor:
        """Of ones that are rotated like Llama's, at places counted from 0."""
        size, scale = self.seen.image.shape[1], self.tables[layer, True].scale
        ones = rotated(torch.ones(len(self.seen.image), 1, size, HEAD_WIDTH))
        bare = HandView(self.seen, self.hidden, {(layer, True): Heads(ones, ones, scale)})
        return bare.attention(rows, layer, mean=True)


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


# -- made-up prompts -------------------------------------------------------------------------------

HEADS, GROUPS, WIDTH, HEAD_WIDTH = 4, 2, 12, 8


@dataclass
class Row:
    """One prompt, all of it: text, then every image with text behind it.

    Attributes:
        image: long `[S]`.
        place: long `[S, 3]`.
        asking: columns.
        vectors: `[S, WIDTH]` by name: hidden, entered, states, embeds.
        heads: `[H, S, d]` and `[G, S, d]` by layer and rotary.
    """

    image: Tensor
    place: Tensor
    asking: list[int]
    vectors: dict[str, Tensor]
    heads: dict[tuple[Which, bool], tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.image)

    def left(self, keep: Tensor, values: Tensor | None = None) -> Row:
        """What is there behind a cut; queries and keys are taken along."""
        columns = keep.nonzero().squeeze(1).tolist()
        vectors = {name: value[keep] for name, value in self.vectors.items()}
        if values is not None:
            vectors["hidden"] = values[keep]
        heads = {name: (q[:, keep], k[:, keep]) for name, (q, k) in self.heads.items()}
        asking = [columns.index(column) for column in self.asking]
        return Row(self.image[keep], self.place[keep], asking, vectors, heads)


def row(grids: list[tuple[int, int]], *, before: int = 3, between: int = 5, seed: int = 0) -> Row:
    """A prompt with images of these grids, and random vectors."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    image, place = [-1] * before, [(-1, -1, -1)] * before
    for number, (high, wide) in enumerate(grids):
        image += [number] * (high * wide) + [-1] * between
        place += [(0, r, c) for r in range(high) for c in range(wide)] + [(-1,) * 3] * between
    size = len(image)
    heads = {
        (layer, rotary): (normal(HEADS, size, HEAD_WIDTH), normal(GROUPS, size, HEAD_WIDTH))
        for layer in ("before", "here")
        for rotary in (True, False)
    }
    names = ("hidden", "entered", "states", "embeds")
    vectors = {name: normal(size, WIDTH) for name in names}
    return Row(torch.tensor(image), torch.tensor(place), [size - 1], vectors, heads)


def batch(
    rows: list[Row], counts: list[list[int]], *, side: str = "left", cut: int = 0, more: int = 0
) -> tuple[HandView, list[slice], Tensor]:
    """Rows side by side, padded with numbers that must not matter.

    Returns:
        the view; where each row stands; the embeddings `[B, S, D]`.
    """
    size, images = max(map(len, rows)) + more, max(1, *(len(some) for some in counts))
    where = [slice(size - len(one), size) if side == "left" else slice(0, len(one)) for one in rows]

    def join(parts: list[Tensor], fill: float) -> Tensor:
        out = parts[0].new_full((len(rows), size, *parts[0].shape[1:]), fill)
        for b, (part, place) in enumerate(zip(parts, where, strict=True)):
            out[b, place] = part
        return out

    most = max(1, *(len(one.asking) for one in rows))
    asking = torch.full((len(rows), most), -1)
    for b, one in enumerate(rows):
        for nth, column in enumerate(one.asking):
            asking[b, nth] = column + where[b].start
    seen = Seen(
        cut,
        2,
        join([one.image for one in rows], -1),
        join([one.place for one in rows], -1),
        join([torch.ones(len(one), dtype=torch.bool) for one in rows], 0),
        torch.tensor([[*some, *[0] * (images - len(some))] for some in counts]),
        asking,
        None,
    )
    vectors = {name: join([one.vectors[name] for one in rows], 7.0) for name in rows[0].vectors}
    tables = {}
    for name in rows[0].heads:
        parts = [
            join([one.heads[name][i].transpose(0, 1) for one in rows], 7.0).transpose(1, 2)
            for i in (0, 1)
        ]
        tables[name] = Heads(*parts, HEAD_WIDTH**-0.5)
    view = HandView(seen, vectors["hidden"], tables, vectors["states"], vectors["entered"])
    return view, where, vectors["embeds"]
