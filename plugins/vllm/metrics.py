"""Kept and dropped tokens in vLLM's `/metrics`, and how often a method failed.

Images are encoded in a process of their own, whose metrics vLLM does not export unless it counts over
processes (`PROMETHEUS_MULTIPROC_DIR`, which it sets itself for several API servers). Elsewhere the
failures are the bytes of a file on the machine of the API server.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

_FALLBACKS = ("vtc_fallbacks", "Images whose method failed")


@cache
def visual_tokens() -> Any:
    """`vtc_visual_tokens_total{state="kept"|"dropped"}`, counted where requests come in."""
    from prometheus_client import Counter

    return Counter("vtc_visual_tokens", "Visual tokens of images in prompts", ["state"])


@cache
def tally() -> str | None:
    """An empty file that lives as long as this process; None where metrics count over processes."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        return None
    handle, path = tempfile.mkstemp(prefix="vtc-fallbacks-")
    os.close(handle)
    atexit.register(_remove, path, os.getpid())
    return path


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a process that was forked from it
        with suppress(OSError):
            os.unlink(path)


def fell_back(path: str | None) -> None:
    """Count an image whose tokens were taken at even distances because its method failed.

    Args:
        path: the file of the API server; on another machine it is not there, and the log alone tells.
    """
    if path is None:
        _counter().inc()
        return
    with suppress(OSError):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)  # appending is whole or not at all
        try:
            os.write(file, b".")
        finally:
            os.close(file)


@cache
def fallbacks(path: str | None) -> None:
    """`vtc_fallbacks_total` in `/metrics`, from now on."""
    if path is None:
        _counter()
        return
    from prometheus_client import REGISTRY

    REGISTRY.register(_Fallbacks(path))  # type: ignore[arg-type]  # a collector by its one method


@cache
def _counter() -> Any:
    from prometheus_client import Counter

    return Counter(*_FALLBACKS)


class _Fallbacks:
    """Reads the file whenever somebody asks for metrics."""

    def __init__(self, path: str) -> None:
        self.path = path

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily

        with suppress(OSError):
            os.utime(self.path)  # systems remove temporary files that nobody touched for days
            yield CounterMetricFamily(*_FALLBACKS, value=os.path.getsize(self.path))


class Sizes:
    """How many tokens images had before they were pruned, and along their longer side, by hash; the
    latest ones.

    vLLM's cache of processed images gives an image back without its data.
    """

    def __init__(self, most: int = 65536) -> None:
        self.most = most
        self.known: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def put(self, key: str, size: tuple[int, int]) -> None:
        self.known[key] = size
        self.known.move_to_end(key)
        if len(self.known) > self.most:
            self.known.popitem(last=False)

    def get(self, key: str) -> tuple[int, int] | None:
        """None for one that is forgotten."""
        if key in self.known:
            self.known.move_to_end(key)
        return self.known.get(key)


def forget(cache: Any, out: Mapping[str, Any]) -> None:
    """Take what a refused request brought out of vLLM's cache of processed images.

    That cache tells what the engine has been sent, and is written before the request is refused. Left in
    it, an image of the next request would come without its data, and the engine would not have it.

    Args:
        cache: of the request, None where it is turned off.
        out: what the processor made of the request; images that the engine has stand in it as None.
    """
    for modality, hashes in out["mm_hashes"].items() if cache is not None else ():
        for key, item in zip(hashes, out["mm_kwargs"].get(modality, ()), strict=True):
            if item is not None:
                cache.invalidate(key)
