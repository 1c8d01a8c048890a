"""Queries and keys of a decoder layer, without running it and without touching it.

A shallow copy of the layer's attention module names an attention function of ours, which notes what it
is given and ends the pass there. So rotary embedding, norms of queries and keys, biases and LoRA are the
module's own, and SDPA, FlashAttention or Flex stay in use for everything else.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from vtc.errors import VTCError
from vtc.layers import Heads
from vtc.plugins.hf.typing import Model

_NAME = "vtc_read"


@dataclass
class Read:
    """What an attention function of a decoder layer is given.

    Attributes:
        heads: queries and keys.
        window: keys that a query sees at most, itself counted; None for all.
        softcap: a bound that logits are squashed to, None for none.
    """

    heads: Heads
    window: int | None
    softcap: float | None


class _Caught(Exception):
    """Ends the pass of a module's copy; carries what was read."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.read = read


def _catch(module: Model, query: Tensor, key: Tensor, value: Tensor, *_: Any, **kw: Any) -> Any:
    scale = kw.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    raise _Caught(Read(Heads(query, key, scale), kw.get("sliding_window"), kw.get("softcap")))


AttentionInterface.register(_NAME, _catch)


@torch.no_grad()
def read(layer: Model, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Read:
    """Queries and keys of a decoder layer for `hidden [B, S, D]`.

    Args:
        rotary: cosines and sines, `[B, S, d]` each.

    Raises:
        VTCError: the layer's attention is none of transformers'.
    """
    attention = layer.self_attn
    twin, shadow = copy.copy(attention), copy.copy(attention.config)
    shadow._attn_implementation_internal = _NAME
    twin.config = shadow
    try:
        type(attention).forward(
            twin,
            hidden_states=layer.input_layernorm(hidden),
            position_embeddings=rotary,
            attention_mask=None,
        )
    except _Caught as caught:
        return caught.read
    raise VTCError(
        f"model: {type(attention).__name__} does not ask transformers for its attention function, so "
        "nothing can be read of it; methods that look at no attention work"
    )


def unrotated(rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Cosines and sines that leave queries and keys as they are."""
    return torch.ones_like(rotary[0]), torch.zeros_like(rotary[1])
