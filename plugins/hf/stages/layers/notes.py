"""What the layers of a KV cache hold where a prompt was cut; kept on the cache.

Layers behind a cut hold fewer tokens than layer 0, from which transformers reads the length. Every later
call appends the same columns to all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.plugins.hf import cache
from vtc.plugins.hf.stages.layers import continued
from vtc.plugins.hf.typing import Model


@dataclass
class Held:
    """Layers that hold the same.

    Attributes:
        first: of the layers.
        last: the one behind them.
        valid: bool `[B, P]`, False for padding among what they hold.
        padded: whether there is any.
        bias: float32 `[B, P]`, what is added to the logits of all attention to them; None for nothing.
    """

    first: int
    last: int
    valid: Tensor
    padded: bool
    bias: Tensor | None = None

    def joined(self, fresh: Tensor, padded: bool, bias: Tensor | None) -> Held:
        """The same with new columns `[B, q]` behind."""
        valid = torch.cat([self.valid, fresh.to(self.valid.device)], 1)
        if bias is not None or self.bias is not None:
            parts = zip((self.bias, bias), (self.valid, fresh), strict=True)
            bias = torch.cat([bias_like(b, v).to(valid.device) for b, v in parts], 1)
        return Held(self.first, self.last, valid, self.padded or padded, bias)


def bias_like(bias: Tensor | None, valid: Tensor) -> Tensor:
    """`bias`, or none of it for columns `valid [B, P]`."""
    return torch.zeros(valid.shape, device=valid.device) if bias is None else bias


@dataclass
class Notes:
    """The layers of a cache from the first cut on.

    Attributes:
        held: from the first cut to the last layer, one behind the other.
        columns: what layer 0 holds.
        shared: columns at the end that all layers hold alike; no more of them can be taken off.
        later: what the call under way needs, None outside of one.
        entered: whether a call is under way that knows of these notes.
        owner: the model that continued last, as `continued` names it.
    """

    held: list[Held]
    columns: int
    shared: int
    later: Any = None
    entered: bool = False
    owner: int = 0

    @property
    def rows(self) -> int:
        """B."""
        return len(self.held[0].valid)

    def select(self, index: Tensor) -> None:
        """Take rows of the batch, by number."""
        for held in self.held:
            held.valid = held.valid[index.to(held.valid.device)]
            if held.bias is not None:
                held.bias = held.bias[index.to(held.bias.device)]

    def own(self, model: Model) -> None:
        """`model` continues what is noted."""
        self.owner = continued.named(model)

    def check(self) -> None:
        """Whether the call under way may size masks for what the layers hold.

        Raises:
            VTCError: it does not run under compression inside the language model.
        """
        if not self.entered and not continued.is_expected(self.owner):
            held = sorted({self.columns, *(held.valid.shape[1] for held in self.held)})
            raise VTCError(
                "cache: cannot be continued by a bare model, it holds a prompt that was cut inside the "
                f"language model, so that its layers hold {held[0]} to {held[-1]} tokens; continue it "
                "under a method that works there, or start with a fresh one"
            )

    def follow(self, length: Any, name: str) -> None:
        """Take off what the cache's owner has cropped, and add what it holds beside.

        Args:
            length: of layer 0 now; a tensor where the cache is a static one, which is never cropped.
            name: of the argument that the cache came as.

        Raises:
            VTCError: it was cropped into what the layers do not hold alike.
        """
        if isinstance(length, Tensor) or length == self.columns:
            return
        gone = self.columns - length
        if gone > self.shared:
            raise VTCError(
                f"{name}: cannot be continued under compression, it holds {length} tokens where there "
                f"were {self.columns}, and its layers hold only the last {self.shared} alike; start "
                "with a fresh one"
            )
        for held in self.held:
            size = held.valid.shape[1] - gone
            more = held.valid.new_ones(len(held.valid), max(-gone, 0))
            held.valid = torch.cat([held.valid[:, : max(size, 0)], more], 1)
            if held.bias is not None:
                held.bias = torch.cat([held.bias[:, : max(size, 0)], bias_like(None, more)], 1)
        self.columns, self.shared = length, self.shared - gone

    def fit(self, batch: int, name: str) -> None:
        """Have as many rows as the call.

        Raises:
            VTCError: nobody knows which rows are meant.
        """
        if cache.is_to_repeat(self.rows, batch, name):
            self.select(torch.zeros(batch, dtype=torch.long))

    def append(self, fresh: Tensor, padded: bool, bias: Tensor | None = None) -> None:
        """New columns `[B, q]`, in every layer."""
        self.held = [held.joined(fresh, padded, bias) for held in self.held]
        self.columns += fresh.shape[1]
        self.shared += fresh.shape[1]

    def of(self, layer: int) -> Held | None:
        """What a layer holds, None in front of the first cut."""
        return next((held for held in self.held if held.first <= layer < held.last), None)


def edges(notes: Notes | None, cuts: Sequence[int], depth: int) -> list[tuple[int, int]]:
    """The runs of layers that will hold the same, from the first cut on, be it an earlier turn's."""
    firsts = {*cuts, *(held.first for held in notes.held)} if notes is not None else set(cuts)
    ordered = [*sorted(firsts), depth]
    return list(zip(ordered[:-1], ordered[1:], strict=True))
