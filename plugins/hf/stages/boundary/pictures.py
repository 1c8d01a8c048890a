"""Pictures that are made smaller ahead of the encoder, and the prompt that then stands around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.methods.resize import Resize
from vtc.plugins.model.compaction import Compaction
from vtc.plugins.model.families import FAMILIES
from vtc.plugins.model.inputs import Inputs
from vtc.plugins.model.positions import last_of, prompt_positions
from vtc.plugins.model.smaller.base import Smaller
from vtc.plugins.model.smaller.choose import Choice, choose
from vtc.plugins.model.smaller.families import resizer
from vtc.plugins.model.units import Unit

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch
    from vtc.plugins.hf.stages.boundary.prompt import Prompt


@dataclass
class Pictures:
    """The images or clips of one modality as the caller gave them.

    Attributes:
        inputs: what the processor made.
        units: the images or clips.
    """

    inputs: Inputs
    units: list[Unit]


def pictures(
    config: Any, modality: str, kwargs: dict[str, Any], ids: Tensor | None, placeholder: Tensor
) -> Pictures:
    """What a call shows, without running anything."""
    inputs = Inputs(config, modality, kwargs, ids, placeholder)
    return Pictures(inputs, FAMILIES[config.model_type](inputs))


def smaller(patch: Patch, shown: Pictures, numbers: Sequence[int], count: int) -> Smaller:
    """The pictures at the sizes that the plan's budgets ask for.

    Args:
        numbers: of each among all images and clips of the prompts, in reading order.
        count: of all calls.

    Raises:
        VTCError: the family can make no picture of an image that is small enough.
    """
    assert patch.resize is not None, "else nobody asks"
    make = resizer(shown.inputs.config)
    followed = patch.method.name != "none"
    chosen: list[Choice | None] = []
    for unit, number in zip(shown.units, numbers, strict=True):
        method = patch.resize.for_image(number, count)
        assert isinstance(method, Resize), "as every copy of one"
        if len(unit.layout) == 0 or method.is_identity(unit.packing):
            chosen.append(None)
            continue
        kept = method.budget(unit.packing)
        most = method.target(unit.packing) if followed else kept
        choice = choose(make.choices(shown.inputs, unit), most, kept if followed else None)
        chosen.append(None if choice.patches >= unit.packing.patches else choice)
    if not any(chosen):
        return Smaller(shown.units, shown.units, {}, [])
    return make.make(shown.inputs, shown.units, chosen)


def behind(
    patch: Patch, full: Mapping[str, list[Unit]], numbers: Mapping[str, Sequence[int]]
) -> Method:
    """The method behind with the budgets of the plan, which are shares of the caller's pictures.

    Args:
        full: the caller's images and clips by modality.
        numbers: of each among all of the prompts, in reading order.
    """
    resize, method = patch.resize, patch.method
    if resize is None or method.name == "none":
        return method
    own = replace(method, retention=resize.retention, tokens=resize.tokens, strict=False)
    count, tokens = sum(map(len, numbers.values())), {}
    for modality, units in full.items():
        for unit, number in zip(units, numbers[modality], strict=True):
            packing = unit.packing
            kept = own.for_image(number, count).budget(packing) if packing.length else 1
            tokens[number] = kept // packing.frames if method.video == "frame" else kept
    return replace(method, retention=None, tokens=[max(tokens[n], 1) for n in range(count)])


def hide(host: Tensor, done: Sequence[Smaller | None]) -> Tensor:
    """Bool `[B, L]`: the columns that are left, without text that goes with what is gone."""
    gone = [column for each in done if each is not None for column in each.gone]
    if not gone:
        return host
    host = host.clone()
    host.view(-1)[gone] = False
    return host


def positions(
    prompt: Prompt, small: Compaction, changes: dict[str, Any], past: Tensor | None
) -> Tensor:
    """The positions of the caller's columns, those that a prompt around small pictures has.

    Args:
        small: how that prompt reads from the caller's.
        changes: its arguments, those among them that say how large pictures are.
        past: int64 `[R, B, T]`, positions of what the cache holds.

    Returns:
        int64 `[R, B, L]`, 0 for columns that have no place in that prompt, else as `prompt_positions`.
    """
    first, given = prompt.first, prompt.kwargs.get("position_ids")
    if given is not None:
        return _moved(given, small, prompt.real)
    sizes = {k: changes.get(k) for k in ("image_grid_thw", "video_grid_thw")}
    arguments = {**prompt.kwargs, **sizes, "input_ids": prompt.ids}
    for name in ("input_ids", "mm_token_type_ids"):
        if arguments.get(name) is not None:
            arguments[name] = small.gather(arguments[name].to(prompt.device))
    own = getattr(prompt.model.base_model, "get_rope_index", None)
    short = prompt_positions(own, arguments, small.valid, None)
    tail = _at_columns(short, small, prompt.length)[..., first:]
    if past is None or not first:
        return tail
    rows = max(len(past), len(tail))
    tail = tail + (last_of(past) + 1)[None, :, None]
    return torch.cat([each.expand(rows, -1, -1) for each in (past, tail)], 2)


def _at_columns(short: Tensor, small: Compaction, length: int) -> Tensor:
    """`[R, B, S]` at the caller's columns `[R, B, L]`."""
    slot = torch.where(small.valid, small.slot, length).expand_as(short)
    out = short.new_zeros(*short.shape[:2], length + 1)
    return out.scatter(2, slot, short)[..., :length]


def _moved(given: Tensor, small: Compaction, real: Tensor) -> Tensor:
    """The caller's own positions without the steps of columns that are gone, sample by sample."""
    if given.dim() == 3:
        raise VTCError(
            f"position_ids: got {list(given.shape)}, rows and columns of the pictures as they were, "
            "which 'resize' makes smaller; leave them to the model"
        )
    given = given.expand(real.shape)
    left = _at_columns(torch.ones_like(small.slot)[None], small, real.shape[1])[0]
    gone = (real & (left == 0)).long()
    starts = given.diff(dim=1, prepend=given[:, :1] - 1) != 1
    before = gone.cumsum(1) - gone
    at_start = torch.where(starts, before, 0).cummax(1).values
    return (given - (before - at_start))[None]


def check_hidden(made: Smaller, visible: Mapping[int, Tensor]) -> None:
    """Raise `VTCError` where a mask hides a part of a picture that is made smaller.

    Args:
        visible: of each that is hidden in part, the tokens that are seen.
    """
    if any(len(seen) for index, seen in visible.items() if made.changed(index)):
        raise VTCError(
            "attention_mask: hides a part of an image that 'resize' makes smaller, where nobody can say "
            "which; hide all of it or nothing"
        )
