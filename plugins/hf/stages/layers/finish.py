"""Behind the last layer: an output as long as the prompt, notes on the cache, and the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.plugins.hf import cache
from vtc.plugins.hf.stages.layers.part import Part
from vtc.plugins.model.cuts import gathered, long_again
from vtc.report import LayerCut

if TYPE_CHECKING:
    from vtc.plugins.hf.stages.layers.prompt import Prompt


def finish(prompt: Prompt, kwargs: dict[str, Any], output: Any) -> Any:
    """The output of the language model, in the columns of the prompt."""
    held_in = cache.found(output, kwargs)
    front = cache.length(held_in)
    if held_in is not None and front:
        notes = prompt.notes_behind(front)
        notes.own(prompt.model)
        cache.note_inside(held_in, notes)
    _report(prompt)
    if isinstance(output, tuple):
        return (_long(prompt, len(prompt.lm.layers), output[0]), *output[1:])
    output["last_hidden_state"] = _long(prompt, len(prompt.lm.layers), output["last_hidden_state"])
    states = output.get("hidden_states")
    if states is not None:
        # the last one is behind the final norm, the others are what left the layer in front
        output["hidden_states"] = tuple(
            _long(prompt, number, state) for number, state in enumerate(states)
        )
    return output


def _long(prompt: Prompt, number: int, hidden: Tensor) -> Tensor:
    """What left the layers in front of `number`, a row for every column of the prompt."""
    part = prompt.part(number - 1)
    length = prompt.shown.valid.shape[1]
    if part.index is None or hidden.shape[1] == length:
        return hidden
    return gathered(hidden, long_again(part.index, part.seen.valid, length), 1)


def _report(prompt: Prompt) -> None:
    """Which tokens of each image every cut has left."""
    whole = prompt.parts[0].looked
    if whole is None:
        return
    depth = len(prompt.lm.layers)
    cuts = [(layer, _left(part, whole.image)) for layer, part in prompt.parts.items() if layer]
    for number, image in enumerate(prompt.shown.images):
        row = image.row * prompt.shown.copies
        mine = whole.image[row] == image.number
        prompt.shown.report.images[number].cut(
            depth, [LayerCut(layer, left[row][mine].nonzero().squeeze(1)) for layer, left in cuts]
        )


def _left(part: Part, like: Tensor) -> Tensor:
    """Bool `[B, L]`, on the CPU: the columns of the prompt that a part has."""
    assert part.looked is not None
    left = torch.zeros_like(like)
    left.scatter_add_(1, part.looked.columns, part.looked.valid.long())
    return left > 0
