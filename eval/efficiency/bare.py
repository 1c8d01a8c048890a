"""A language model whose layers are fed fewer tokens by hand: what cuts would cost if they cost nothing.

From some layers on the last tokens alone go on. Nothing is read, chosen or gathered, and nothing of
`vtc`'s stage inside the language model runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vtc.plugins.hf import cache


@contextmanager
def fed(layers: nn.ModuleList, lengths: Sequence[int]) -> Iterator[None]:
    """Inside the block, layer i of a prompt of `lengths[0]` tokens runs on the last `lengths[i]`.

    For one row without padding, and whatever is decoded behind it.
    """

    def feed(number: int) -> Any:
        def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            kwargs = dict(kwargs)
            fresh = hidden.shape[1]
            if fresh > 1:
                fresh = lengths[number]
                hidden = hidden[:, -fresh:]
                rotary = kwargs.get("position_embeddings")
                if rotary is not None:
                    kwargs["position_embeddings"] = tuple(x[..., -fresh:, :] for x in rotary)
                places = kwargs.get("position_ids")
                if places is not None:
                    kwargs["position_ids"] = places[..., -fresh:]
            mask = kwargs.get("attention_mask")
            if isinstance(mask, Tensor):  # of the first layer's length
                held = cache.given(kwargs)
                seen = fresh + (0 if held is None else held.get_seq_length(number))
                mask = mask[..., -seen:] if mask.dim() == 2 else mask[..., -fresh:, -seen:]
                kwargs["attention_mask"] = mask
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        return before

    handles = [
        layer.register_forward_pre_hook(feed(number), with_kwargs=True)
        for number, layer in enumerate(layers)
        if lengths[number] != lengths[0]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
