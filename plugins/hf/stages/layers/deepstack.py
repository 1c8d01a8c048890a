"""Features that a language model adds to visual tokens behind its first layers (Qwen3-VL's deepstack).

The model adds them itself as long as the sequence is whole; behind the first cut it is done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.plugins.model.cuts import gathered


class Deepstack:
    """What is left for the layers behind the first cut.

    Attributes:
        levels: layer -> `[N, D]`, what is added to its output.
        visual: bool `[B, L]`, the columns of the N visual tokens.
    """

    def __init__(self, levels: dict[int, Tensor], visual: Tensor) -> None:
        self.levels, self.visual = levels, visual
        self.nth = (visual.flatten().cumsum(0) - 1).clamp(min=0).view(visual.shape)

    def add(self, number: int, hidden: Tensor, index: Tensor | None) -> Tensor:
        """What enters layer `number`: the output of the one in front, and what is added to it.

        Args:
            index: the columns that are left, `[B, S]`; None for all.
        """
        level = self.levels.get(number - 1)
        if level is None:
            return hidden
        visual, nth = self.visual, self.nth
        if index is not None:
            visual, nth = gathered(visual, index), gathered(nth, index)
        deep = level.to(hidden)[nth.to(level.device)].to(hidden.device)
        return torch.where(visual.to(hidden.device)[..., None], hidden + deep, hidden)


def taken(kwargs: dict[str, Any], first: int) -> Deepstack | None:
    """Take what is added behind the first cut from the arguments of a language model.

    Args:
        first: the layer that the first cut is in front of.
    """
    levels: Sequence[Tensor] | None = kwargs.get("deepstack_visual_embeds")
    if levels is None or len(levels) <= first:
        return None
    kwargs["deepstack_visual_embeds"] = list(levels[:first])
    mine = {number: level for number, level in enumerate(levels) if number >= first}
    return Deepstack(mine, kwargs["visual_pos_masks"])
