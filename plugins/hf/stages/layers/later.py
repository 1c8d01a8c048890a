"""Calls behind a prompt that was cut: decoding steps, drafts, turns of text."""

from __future__ import annotations

from typing import Any

from vtc.plugins.hf.stages.boundary.proportional import Bias


class Later:
    """The masks of such a call, made ahead of it; what happens inside it can be traced.

    Attributes:
        first: the first layer behind a cut.
        masks: of the layers from there on.
        biases: of the same layers, what is added to the logits of all attention to each key.
    """

    prompt = False

    def __init__(self, first: int, masks: list[Any], biases: list[Bias | None]) -> None:
        self.first, self.masks, self.biases = first, masks, biases
