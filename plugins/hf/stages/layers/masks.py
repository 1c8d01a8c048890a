"""The attention masks of some decoder layers, made by transformers itself.

It sizes masks by the first layers of a cache. Behind a cut the layers hold fewer tokens, so it is given
a view of the cache with them alone: lengths, offsets and sliding windows come out right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils
from transformers.cache_utils import Cache

from vtc.plugins.hf import cache
from vtc.plugins.hf.stages.boundary.packed import LENGTHS
from vtc.plugins.hf.stages.boundary.proportional import KEY, Bias
from vtc.plugins.hf.typing import Model


def make_masks(
    model: Model,
    lm: Model,
    like: Tensor,
    valid: Tensor | None,
    held_in: Any,
    layers: tuple[int, int],
    types: Tensor | None = None,
) -> Any:
    """What `layers` take as masks: one for all, or one by the type of a layer.

    Args:
        model: it may have a function of its own for it.
        lm: its language model.
        like: `[B, S, D]`, what would enter the layers; its values are not read.
        valid: bool `[B, P + S]`, False for padding, what is in the cache in front; None where nothing
            is.
        held_in: the cache of the call, None for none.
        layers: the first of them and the one behind the last.
        types: token types `[B, S]`, where the model masks by them.
    """
    general = masking_utils.create_masks_for_generate
    make = general if types is None else getattr(model, "create_masks_for_generate", general)
    known = getattr(held_in, "layers", None)
    arguments: dict[str, Any] = {
        "config": lm.config if make is general else model.config,
        "inputs_embeds": torch.empty(*like.shape[:2], 0, dtype=like.dtype, device=like.device),
        "attention_mask": valid,
        cache.name(model): None if known is None else Cache(layers=known[slice(*layers)]),
        "position_ids": None,
    }
    if types is not None:
        arguments["token_type_ids"] = types
    return make(**arguments)


def of_layer(masks: Any, lm: Model, number: int) -> Any:
    """The mask of decoder layer `number` among `make_masks`."""
    if not isinstance(masks, dict):
        return masks
    return masks[lm.config.layer_types[number]]


def replace_mask(kwargs: dict[str, Any], mask: Any) -> None:
    """Give a layer its mask, and take away what says the same of the long sequence."""
    kwargs["attention_mask"] = mask
    for key in LENGTHS:
        kwargs.pop(key, None)


def replace_bias(kwargs: dict[str, Any], bias: Bias | None) -> None:
    """Give a layer the bias of its own keys in place of that of the long sequence."""
    kwargs.pop(KEY, None)
    if bias is not None:
        kwargs[KEY] = bias
