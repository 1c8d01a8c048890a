"""`Server`: what the API server tells every other process, inside vLLM's own configuration.

Nothing here imports vLLM.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vtc.errors import VTCError
from vtc.plugins.vllm.settings import split

#: the package is imported by now, and stands above this room
VERSION = sys.modules["vtc"].__version__
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Server:
    """Settings of a server, made once where its configuration is made.

    A process that cannot prune as the API server promises ends when this arrives, which is before it
    loads a model: one without `vtc` cannot find this module, one with another version says so.

    Attributes:
        defaults: processor keywords that the server was started with, `vtc`'s among them.
        blind: why nothing can be read of the vision tower, empty where it can.
        tally: file whose size is the number of images that a method failed on, None where vLLM's own
            metrics count over processes, or nobody asks.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    blind: str = ""
    tally: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return arrived, (VERSION, dict(self.defaults), self.blind, self.tally)


def arrived(version: str, *fields: Any) -> Server:
    """The `Server` of another process.

    Raises:
        VTCError: that process has another `vtc`, or here the plug-in is turned off.
    """
    if version != VERSION:
        raise VTCError(
            f"vtc: got {VERSION} in this process and {version} in the one that started it; "
            "the same vtc must be installed on every node"
        )
    if not turned_on():
        raise VTCError(
            "VTC_VLLM: got 0, or VLLM_PLUGINS without vtc, in a worker of a server that prunes; "
            "set both alike on every node"
        )
    return Server(*fields)


def turned_on(env: Mapping[str, str] = os.environ) -> bool:
    """Whether vLLM runs the plug-in.

    Raises:
        VTCError: `VTC_VLLM` is neither 0 nor 1.
    """
    word = env.get("VTC_VLLM", "1").strip()
    if word not in ("0", "1"):
        raise VTCError(f"VTC_VLLM: got {word!r}, allowed are 0 and 1")
    allowed = env.get("VLLM_PLUGINS")
    return word == "1" and (allowed is None or "vtc" in allowed.split(","))


def of(mm_config: Any, blind: str = "", tally: str | None = None) -> Server:
    """The `Server` in vLLM's configuration; made where there is none yet.

    Keywords that are for `vtc` are taken out of the configuration, which hands all that is left to the
    model's own processor.

    Args:
        mm_config: vLLM's `MultiModalConfig`.
        blind, tally: of a `Server` that is made.

    Raises:
        VTCError: a keyword begins with `vtc_` and is none.
    """
    with _LOCK:
        if not hasattr(mm_config, "vtc_server"):
            given = dict(mm_config.mm_processor_kwargs or {})
            ours, theirs = split(given)
            mm_config.vtc_server = Server(given, blind, tally)
            if ours:
                mm_config.mm_processor_kwargs = theirs or None
        return mm_config.vtc_server
