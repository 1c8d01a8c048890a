"""Attention in proportion to what a token stands for: a bias on its key, for as long as a cache has it.

A token of weight w gets log(w) added to the logits of all attention to it, which is what w copies of its
key and value would do. The bias belongs to columns of the conversation. It is noted on the cache,
follows what the cache's owner does with it, and is added to the mask that transformers made for a layer,
just in front of that layer: so causal masks, padding, packed rows, sliding windows and static caches are
transformers' own. Eager attention and SDPA take such masks of floats; FlashAttention and Flex do not.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.errors import VTCError
from vtc.plugins.hf import cache
from vtc.plugins.hf.hooks import Hook
from vtc.plugins.hf.typing import Model

if TYPE_CHECKING:
    from vtc.plugins.hf.stages.boundary.encode import Encoded

#: the keyword under which the bias travels through the language model to its layers
KEY = "vtc_bias"
#: attention functions that take a mask of floats
TAKES = ("eager", "sdpa")


@dataclass(eq=False)
class Bias:
    """What is added to the logits of all attention to each key.

    Attributes:
        columns: float32 `[B, C]`, by the columns that a cache has seen; 0 behind them.
    """

    columns: Tensor
    _made: dict[Any, tuple[Any, Tensor]] = field(default_factory=dict, repr=False)

    def of(self, start: int, count: int) -> Tensor:
        """`[B, count]`, the columns from `start` on."""
        here = self.columns[:, start : start + count]
        return pad(here, (0, count - here.shape[1]))

    def added(
        self, mask: Tensor | None, like: Tensor, size: tuple[int, int], causal: bool
    ) -> Tensor:
        """A layer's mask of floats `[B, 1, q, k]`; layers that are given the same share it.

        Args:
            mask: the layer's own: of bools, of floats, or None.
            like: `[B, q, D]`, what enters the layer.
            size: k, and the column of the first key.
            causal: whether no mask means that a query sees no later key.
        """
        known = self._made.get((id(mask), size, causal, like.device))
        if known is None:
            bias = self.of(size[1], size[0]).to(like.device, _dtype(like))[:, None, None]
            made = _added(mask, bias, like.shape[1], causal)
            # the mask is kept alive, and with it its identity
            known = self._made[id(mask), size, causal, like.device] = (mask, made)
        return known[1]


def _dtype(like: Tensor) -> torch.dtype:
    """Of queries and keys; the least number of a wider one would be infinite there."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype


def _added(mask: Tensor | None, bias: Tensor, queries: int, causal: bool) -> Tensor:
    least = torch.finfo(bias.dtype).min
    if mask is None:
        # SDPA's own: one query sees every key, several those in front of them
        mask = bias.new_ones(queries, bias.shape[-1], dtype=torch.bool)
        mask = (mask.tril() if causal and queries > 1 else mask)[None, None]
    mask = mask.to(bias.device)
    return torch.where(mask, bias, least) if mask.dtype == torch.bool else mask + bias


# -- when a method is put on -----------------------------------------------------------------------


def check(model: Model, lm: Model, stages: tuple[str, ...]) -> None:
    """Raise `VTCError` where attention of a language model takes no bias."""
    ready = all(hasattr(getattr(layer, "self_attn", None), "layer_idx") for layer in lm.layers)
    if "layers" not in stages or not ready:
        raise VTCError(
            f"proportional: got True, but layers of {type(model).__name__} are not built as "
            "transformers builds decoder layers, so attention gets no bias; allowed here is False"
        )
    check_attention(lm)


def check_attention(lm: Model) -> None:
    """Raise `VTCError` where the attention in use takes no mask of floats."""
    name = lm.config._attn_implementation
    if name not in TAKES:
        raise VTCError(
            f"proportional: got True, but the language model attends by {name!r}, which takes no bias; "
            f"allowed are {' and '.join(TAKES)}: model.set_attn_implementation('sdpa')"
        )


def hooks(model: Model, lm: Model) -> list[Hook]:
    """The hooks of a model, of its language model and of its layers."""
    layers = [Hook(layer, "forward_pre", bias_layer) for layer in lm.layers]
    ends = Hook(model, "forward", settle, always=True)
    return [ends, Hook(lm, "forward_pre", begin), *layers]


# -- what a call brings ----------------------------------------------------------------------------


def bias_of(done: list[Encoded], order: list[int], visual: Tensor) -> Tensor | None:
    """Float32 `[B, S]`, the bias of the places of a short prompt; None where all tokens weigh 1.

    Args:
        done: what was encoded.
        order: the reading order of all its images.
        visual: bool `[B, S]`, their places.

    Raises:
        VTCError: a weight that is not above 0.
    """
    every = [weight for e in done for weight in e.weights]
    if not every:
        return None
    # a count has no gradient; a mask that asks for one would turn SDPA's fast kernels away
    values = torch.cat([every[i] for i in order]).detach().to(visual.device).float()
    least, most = torch.stack(values.aminmax()).tolist()
    if not 0 < least <= most < float("inf"):
        raise VTCError(
            f"proportional: got True, but the method gave weights from {least:g} to {most:g}, of which "
            "there is no logarithm; allowed are weights above 0"
        )
    if least == most == 1:
        return None
    nth = (visual.flatten().cumsum(0) - 1).clamp(0, len(values) - 1)
    return torch.where(visual, values.log()[nth].view(visual.shape), 0)


#: from the hook of a model to that of its language model
_BIAS: ContextVar[Bias | None] = ContextVar("vtc_bias", default=None)


def enter(model: Model, kwargs: dict[str, Any], fresh: Tensor | None) -> Bias | None:
    """Make ready for a call of `model`.

    Args:
        kwargs: the call's arguments, by name.
        fresh: `[b, S]`, the bias of a prompt that the call begins; rows may stand there several times,
            as for beams. None for a call that goes on.

    Returns:
        The bias of all columns up to the end of the prompt, which belongs on the cache behind the call;
        None where there is none.
    """
    held_in = cache.given(kwargs)
    known = cache.bias(held_in)
    ids = kwargs.get("input_ids")
    inputs = ids if ids is not None else kwargs.get("inputs_embeds")
    if inputs is None or (fresh is None and known is None):
        return None
    batch, count = inputs.shape[:2]
    if known is not None:
        known = _fit(held_in, known, batch, cache.name(model))
    if fresh is not None:
        fresh = fresh.repeat_interleave(batch // len(fresh), 0)
        # virtual tokens in front of a prompt (PEFT) come as embeddings, drafts behind it as ids
        ahead = max(count - fresh.shape[1], 0) if ids is None else 0
        past = cache.length(held_in)
        front = Bias(fresh[:, :0] if known is None else known[:, :past]).of(0, past + ahead)
        known = torch.cat([front, fresh], 1)
    assert known is not None
    bias = Bias(known)
    _BIAS.set(bias)
    return bias


def settle(*_: Any) -> None:
    """Forward hook of the model, even when it fails: no call is under way."""
    _BIAS.set(None)


def _fit(held_in: Any, known: Tensor, batch: int, name: str) -> Tensor:
    """`known`, with as many rows as the call."""
    if cache.is_to_repeat(len(known), batch, name):
        known = known.expand(batch, -1)
        cache.note_bias(held_in, known)
    return known


# -- inside a call ---------------------------------------------------------------------------------


@torch.compiler.disable
def begin(lm: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of the language model: the bias of the call, if it has one."""
    bias, held_in = _BIAS.get(), cache.given(kwargs)
    _BIAS.set(None)
    if bias is None:  # somebody may call the inner model
        known, embeds = cache.bias(held_in), kwargs.get("inputs_embeds")
        inputs = embeds if embeds is not None else kwargs.get("input_ids")
        if known is None or inputs is None:
            return None
        bias = Bias(_fit(held_in, known, len(inputs), cache.name(lm)))
    check_attention(lm)
    return args, {**kwargs, KEY: bias}


def bias_layer(layer: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of a decoder layer: its mask, with the bias."""
    return None if KEY not in kwargs else _biased(layer, args, kwargs)


@torch.compiler.disable
def _biased(layer: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rest = {key: value for key, value in kwargs.items() if key != KEY}
    bias, attention = kwargs[KEY], layer.self_attn
    hidden = args[0] if args else kwargs["hidden_states"]
    held_in, mask = cache.given(kwargs), kwargs.get("attention_mask")
    size = _size(held_in, attention.layer_idx, hidden.shape[1])
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape[3:] != size[:1]):
        raise VTCError(
            f"attention_mask: a layer got {_named(mask)}, but attention in proportion to what a token "
            f"stands for needs [batch, 1, queries, {size[0]}]"
        )
    rest["attention_mask"] = bias.added(mask, hidden, size, getattr(attention, "is_causal", True))
    cache.biased(held_in, attention.layer_idx)
    return args, rest


def _size(held_in: Any, number: int, fresh: int) -> tuple[int, int]:
    """Keys that a layer will attend to, and the column of the first."""
    layers = getattr(held_in, "layers", None)
    if layers is None:
        return fresh + cache.length(held_in), 0
    if number >= len(layers):  # made while it is filled
        return fresh, 0
    keys, first = layers[number].get_mask_sizes(fresh)
    return int(keys), int(first)


def _named(mask: Any) -> str:
    return f"{list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
