"""Calls behind a prompt that was cut: decoding steps, drafts, turns of text."""

from __future__ import annotations

from typing import Any


class Later:
    """The masks of such a call, made ahead of it; what happens inside it can be traced.

    Attributes:
        first: the first layer behind a cut.
        masks: of the layers from there on.
    """

    prompt = False

    def __init__(self, first: int, masks: list[Any]) -> None:
        self.first, self.masks = first, masks
