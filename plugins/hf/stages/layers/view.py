"""`View`: a cut as a method sees it, see `vtc.layers.LayerView`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.kernels.row_attention import row_attention
from vtc.layers import Heads, Seen, Which
from vtc.plugins.hf.stages.layers.read import Read, read, unrotated
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.cuts import visible


class Entered(NamedTuple):
    """What enters a decoder layer.

    Attributes:
        layer: the layer.
        hidden: `[B, S, D]`.
        rotary: its cosines and sines, `[B, S, d]` each; None where it is given none.
        keys: gives those that its cache holds of earlier turns, `[B, G, P, d]`, or None.
        past: bool `[B, P]`, False for padding among them.
        bias: float32 `[B, P + S]`, what is added to the logits of attention to each key; None for
            nothing.
    """

    layer: Model
    hidden: Tensor
    rotary: tuple[Tensor, Tensor] | None
    keys: Callable[[], Tensor | None]
    past: Tensor | None
    bias: Tensor | None = None


@dataclass
class View:
    """A cut; what is read of a layer is worked out once.

    Attributes:
        seen: the sequence.
        here: what would enter the layer behind the cut.
        front: what entered the layer in front of it; None where the method does not read it.
        norm: the language model's final norm.
        blocks: int64 `[B, S]`, tokens of one block see each other; None where none do.
    """

    seen: Seen
    here: Entered
    front: Entered | None
    norm: Callable[[Tensor], Tensor]
    blocks: Tensor | None = None
    _read: dict[tuple[Which, bool], Read] = field(default_factory=dict)

    @property
    def hidden(self) -> Tensor:
        return self.here.hidden

    @property
    def before(self) -> Tensor:
        return self._entered("before").hidden

    def normed(self) -> Tensor:
        return self.norm(self.hidden)

    def heads(self, layer: Which, rotary: bool = True) -> Heads:
        return self._of(layer, rotary).heads

    @torch.no_grad()
    def attention(
        self,
        rows: Tensor,
        layer: Which,
        *,
        rotary: bool = True,
        among: Tensor | None = None,
        mean: bool = False,
    ) -> Tensor:
        found, entered = self._of(layer, rotary), self._entered(layer)
        (query, key, scale), valid, past, blocks = found.heads, self.seen.valid, 0, self.blocks
        # keys of earlier turns carry their rotary embedding
        keys = entered.keys() if among is None and rotary else None
        if keys is not None and entered.past is not None:
            past = keys.shape[2]
            key = torch.cat([keys.to(key), key], 2)
            valid = torch.cat([entered.past[:, -past:].to(valid.device), valid], 1)
            if blocks is not None:
                blocks = torch.nn.functional.pad(blocks, (past, 0), value=-1)
        allowed = visible(rows, valid, past, found.window, blocks)
        if among is not None:
            allowed = allowed & among[:, None]
        where = rows.clamp(min=0)[:, None, :, None]
        asked = query.gather(2, where.expand(-1, query.shape[1], -1, query.shape[3]))
        if entered.bias is not None:
            asked, key = _with_bias(asked, key, scale, entered.bias[:, -key.shape[2] :], found)
        out = row_attention(asked, key, scale, allowed, mean, found.softcap)
        return out[..., past:]

    @torch.no_grad()
    def positional(self, rows: Tensor, layer: Which) -> Tensor:
        found, entered = self._of(layer, True), self._entered(layer)
        assert entered.rotary is not None
        # ones that are turned by a and by b have the product 2 (cos a cos b + sin a sin b), pair by
        # pair, and cosines and sines are given twice for each pair
        turned = torch.cat(entered.rotary, -1).float()[:, None]
        allowed = visible(rows, self.seen.valid, 0, found.window, self.blocks)
        asked = turned[:, 0].gather(1, rows.clamp(min=0)[..., None].expand(-1, -1, turned.shape[3]))
        return row_attention(
            asked[:, None], turned, found.heads.scale, allowed, True, found.softcap
        )

    def _of(self, layer: Which, rotary: bool) -> Read:
        if (layer, rotary) not in self._read:
            entered = self._entered(layer)
            if entered.rotary is None:
                raise VTCError(
                    f"model: {type(entered.layer).__name__} is given no position embeddings, so no "
                    "queries and keys can be read of it; methods that look at no attention work"
                )
            turned = entered.rotary if rotary else unrotated(entered.rotary)
            self._read[layer, rotary] = read(entered.layer, entered.hidden, turned)
        return self._read[layer, rotary]

    def _entered(self, layer: Which) -> Entered:
        if layer == "here":
            return self.here
        if layer != "before":
            raise VTCError(f"layer: got {layer!r}, allowed are 'before' and 'here'")
        if self.front is None:
            raise VTCError(
                "layer: got 'before', but the method does not say `reads_before`, so nothing was kept "
                "of the layer in front of the cut"
            )
        return self.front


def held_keys(held_in: Any, number: int, places: int, ran: int = 0) -> Tensor | None:
    """Keys `[B, G, P, d]` of earlier turns that a layer's cache holds; None for none.

    Args:
        places: tokens that it was given in earlier turns.
        ran: tokens of this call that it was given already.
    """
    layers = getattr(held_in, "layers", None) or ()
    keys = getattr(layers[number], "keys", None) if number < len(layers) else None
    if places == 0 or not isinstance(keys, Tensor) or keys.dim() != 4:
        return None
    if type(layers[number]).__name__.startswith("Static"):
        return keys[:, :, :places]
    return keys[:, :, : max(keys.shape[2] - ran, 0)][:, :, -places:]


def _with_bias(
    query: Tensor, key: Tensor, scale: float, bias: Tensor, found: Read
) -> tuple[Tensor, Tensor]:
    """Queries and keys of one more dimension, by which `bias [B, K]` is added to the logits."""
    if found.softcap is not None:
        raise VTCError(
            "proportional: got True, but the method inside the language model reads attention whose "
            "logits are capped, to which no bias is added here; allowed is False, or a method that "
            "reads no attention"
        )
    query, key = query.float(), key.float()
    more = (bias.to(key) / scale)[:, None, :, None].expand(-1, key.shape[1], -1, 1)
    return torch.cat([query, torch.ones_like(query[..., :1])], -1), torch.cat([key, more], -1)
