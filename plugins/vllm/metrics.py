"""Kept and dropped tokens in vLLM's `/metrics`, and how often a method failed."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from typing import Any


@cache
def visual_tokens() -> Any:
    """`vtc_visual_tokens_total{state="kept"|"dropped"}`, counted where requests come in."""
    from prometheus_client import Counter

    return Counter("vtc_visual_tokens", "Visual tokens of images in prompts", ["state"])


@cache
def fallbacks() -> Any:
    """`vtc_fallbacks_total`, counted where images are encoded: images whose tokens were taken at even
    distances because a method failed. A process of its own exports it only where
    `PROMETHEUS_MULTIPROC_DIR` is set."""
    from prometheus_client import Counter

    return Counter("vtc_fallbacks", "Images whose method failed")


class Sizes:
    """How many tokens images had before they were pruned, by hash; the latest ones.

    vLLM's cache of processed images gives an image back without its data.
    """

    def __init__(self, most: int = 65536) -> None:
        self.most = most
        self.known: OrderedDict[str, int] = OrderedDict()

    def put(self, key: str, full: int) -> None:
        self.known[key] = full
        self.known.move_to_end(key)
        if len(self.known) > self.most:
            self.known.popitem(last=False)

    def get(self, key: str) -> int | None:
        """None for one that is forgotten."""
        if key in self.known:
            self.known.move_to_end(key)
        return self.known.get(key)
