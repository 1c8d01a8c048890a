"""Tokens that are dropped before the vision tower: a method that reads pixels alone has decided by then.

The tower encodes the patches of what is left, each at its place in the picture (`Adapter.only`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.methods.base import Method
from vtc.plugins.hf.adapters.base import Call
from vtc.plugins.hf.probe import Record
from vtc.plugins.hf.stages.boundary.cut import Cut, compress_seen, counted_whole, seen_alone
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.units import Unit, places
from vtc.tokens import VisualTokens

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch


@dataclass
class Early(Cut):
    """What a method decided before the images were encoded; `VisualTokens.features` are pixels.

    Attributes:
        encoded: how many tokens of each image the tower is given.
        arguments: of the encoder, in place of the call's; empty where all tokens are encoded.
    """

    encoded: list[int]
    arguments: dict[str, Any]


def decide(
    patch: Patch,
    base: Model,
    kwargs: dict[str, Any],
    modality: str,
    units: Sequence[Unit],
    method: Method,
    numbers: Sequence[int],
    count: int,
    left: dict[int, Tensor],
) -> Early:
    """Ask the method, and say what the encoder is to be given.

    Args:
        kwargs: the call's, with the pixels as the encoder would be given them.
        units: the images or clips that they show.
        method, numbers, count, left: as in `encode.compress_call`.
    """
    nowhere = torch.zeros(1, 0, dtype=torch.bool)
    call = Call(base.config, modality, kwargs, None, nowhere, base, None, Record())
    pixels = patch.adapter.token_pixels(call, units).float()
    (name,) = patch.requests
    tokens, changed = [], []
    for index, place in enumerate(places(units)):
        own, packing = place.patches_of(pixels), place.unit.packing
        packing = seen_alone(packing, left[index]) if index in left else packing
        tokens.append(VisualTokens(own, packing, signals={name: own}))
        identity = method.for_image(numbers[index], count).is_identity(tokens[-1])
        if len(packing.layout) and not identity:
            changed.append(index)
    outs = compress_seen(method, tokens, numbers, count)
    counted_whole(outs, left)
    lengths = [len(unit.layout) for unit in units]
    # of an image that the method has no say in all is encoded, what is hidden too
    kept = [
        outs[i].anchor if i in changed else torch.arange(length, device=pixels.device)
        for i, length in enumerate(lengths)
    ]
    encoded = [len(each) for each in kept]
    arguments = {} if encoded == lengths else patch.adapter.only(call, kept)
    return Early(tokens, outs, changed, encoded, arguments)
