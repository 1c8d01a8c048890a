"""Compression of models that expand placeholders themselves: mPLUG-DocOwl1.5.

One placeholder stands for a whole tile, and the model puts all tokens of the tile in its place when it
assembles the embeddings. So there is no long prompt to shorten: the module that makes the tokens
returns, in place of one tensor for all tiles, a list with what is left of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vtc.errors import VTCError
from vtc.plugins.hf.adapters.base import Adapter, Call
from vtc.plugins.hf.docowl.adapter import tiles_of_rows
from vtc.plugins.hf.hooks import Hook
from vtc.plugins.hf.stages.base import register_stage
from vtc.plugins.hf.stages.boundary.encode import Encoded, compress_call
from vtc.plugins.hf.stages.encoder import EncoderStage
from vtc.plugins.hf.stages.running import call_hooks, forget_call, heard, listen, note_call, running
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.units import Unit

#: hidden states of the tower that has just run
_STATES: ContextVar[Any] = ContextVar("vtc_states")


def before_tower(tower: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of the tower: ears for the probes, and hidden states where they are read."""
    call = running()
    if call is None:
        return None
    listen(call.patch)
    if call.patch.reads_hidden:
        kwargs = {**kwargs, "output_hidden_states": True}
    return args, kwargs


def behind_tower(tower: Model, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of the tower: its caller hands on the last hidden state alone."""
    _STATES.set(output.hidden_states)


def behind_reducer(reducer: Model, args: Any, kwargs: dict[str, Any], output: Tensor) -> Any:
    """Forward hook of the module that makes tokens `[S, n, D]` of all S tiles."""
    current = running()
    if current is None:
        return None
    record = heard()
    patch, base, ids = current.patch, current.model.base_model, current.kwargs["input_ids"]
    made = BaseModelOutputWithPooling(pooler_output=output, hidden_states=_STATES.get())
    placeholder = ids == patch.adapter.token_id(current.model.config, "image")
    call = Call(base.config, "image", current.kwargs, ids, placeholder, base, made, record)
    units = patch.adapter.units(call)
    rows = _rows(call, units)

    def questions(modality: str, lengths: list[int]) -> list[str]:
        return [current.question(row) for row in rows]

    done = compress_call(patch, call, units, questions, range(len(units)), len(units))
    patch.add_report(current.scope.call, done.reports, rows, done.seconds)
    if done.identity:
        return None
    tiles = [tile for index, unit in enumerate(units) for tile in _tiles(done, index, unit)]
    _check_lengths(current.kwargs, tiles_of_rows(call), tiles)
    return tiles


def _rows(call: Call, units: list[Unit]) -> list[int]:
    """The row of the batch that each image belongs to."""
    of_tile = [row for row, count in enumerate(tiles_of_rows(call)) for _ in range(count)]
    firsts = accumulate((unit.tiles for unit in units[:-1]), initial=0)
    return [of_tile[first] for first in firsts]


def _tiles(done: Encoded, index: int, unit: Unit) -> Iterator[Tensor]:
    """What is left of image `index`, tile by tile, each with its separator."""
    tile = done.anchors[index].sort().values // (unit.patches + 1)
    sizes = torch.bincount(tile, minlength=unit.tiles).tolist()
    return iter(done.output.pooler_output[index].split(sizes))


def _check_lengths(kwargs: dict[str, Any], counts: list[int], tiles: list[Tensor]) -> None:
    """The model pads rows of different lengths beside labels only; otherwise it fails or is wrong."""
    if kwargs.get("labels") is not None:
        return
    left = iter(tiles)
    ids, lengths = kwargs["input_ids"], []
    for row, count in enumerate(counts):
        mine = [len(next(left)) - 1 for _ in range(count)]
        lengths.append(ids.shape[1] + (sum(mine) if bool((ids[row] < 0).any()) else 0))
    if len(set(lengths)) > 1:
        raise VTCError(
            f"images: the rows would have {', '.join(map(str, lengths))} tokens, and this model pads "
            "rows of different lengths beside labels only; give it one row at a time"
        )


@register_stage
class DocOwlStage(EncoderStage):
    """On the model, its vision tower and its reducer are hooks, no more."""

    name: ClassVar[str] = "docowl"
    functions = (note_call, forget_call, before_tower, behind_tower, behind_reducer)
    lacks = frozenset({"projector_input"})

    def hooks(self, model: Model, adapter: Adapter) -> list[Hook]:
        base = model.base_model
        tower, reducer = adapter.tower(base), adapter.projector(base)
        assert reducer is not None
        return [
            *call_hooks(model),
            Hook(tower, "forward_pre", before_tower),
            Hook(tower, "forward", behind_tower),
            Hook(reducer, "forward", behind_reducer),
        ]
