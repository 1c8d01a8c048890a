"""`vtc`: visual-token compression for vision-language models.

    with vtc.compress(model, "globalcom2", retention=0.25) as run:
        out = model.generate(**inputs)

Importing `vtc` patches nothing and imports neither transformers nor triton nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same as in _EXPORTS, for type checkers and editors
    from vtc.api import apply as apply
    from vtc.api import apply_from_config as apply_from_config
    from vtc.api import compress as compress
    from vtc.api import model_defaults as model_defaults
    from vtc.api import remove as remove
    from vtc.batch import ImageBatch as ImageBatch
    from vtc.config import CompressionConfig as CompressionConfig
    from vtc.config import add_arguments as add_arguments
    from vtc.errors import VTCError as VTCError
    from vtc.eval.tune import tune as tune
    from vtc.methods.asks_text import AsksText as AsksText
    from vtc.methods.base import Method as Method
    from vtc.methods.scored import Scored as Scored
    from vtc.packing import Packing as Packing
    from vtc.pictures import visualize as visualize
    from vtc.plugins.backends import Handle as Handle
    from vtc.registry import create_method as create_method
    from vtc.registry import list_methods as list_methods
    from vtc.registry import register_method as register_method
    from vtc.report import Report as Report
    from vtc.selection import Selection as Selection
    from vtc.tokens import SIGNALS as SIGNALS
    from vtc.tokens import CompressedTokens as CompressedTokens
    from vtc.tokens import MergeIndex as MergeIndex
    from vtc.tokens import SignalRequest as SignalRequest
    from vtc.tokens import VisualTokens as VisualTokens

__version__ = "0.1.0"

_EXPORTS = {
    "apply": "vtc.api",
    "apply_from_config": "vtc.api",
    "compress": "vtc.api",
    "model_defaults": "vtc.api",
    "remove": "vtc.api",
    "ImageBatch": "vtc.batch",
    "CompressionConfig": "vtc.config",
    "add_arguments": "vtc.config",
    "VTCError": "vtc.errors",
    "tune": "vtc.eval.tune",
    "AsksText": "vtc.methods.asks_text",
    "Method": "vtc.methods.base",
    "Scored": "vtc.methods.scored",
    "Packing": "vtc.packing",
    "visualize": "vtc.pictures",
    "Handle": "vtc.plugins.backends",
    "create_method": "vtc.registry",
    "list_methods": "vtc.registry",
    "register_method": "vtc.registry",
    "Report": "vtc.report",
    "Selection": "vtc.selection",
    "SIGNALS": "vtc.tokens",
    "CompressedTokens": "vtc.tokens",
    "MergeIndex": "vtc.tokens",
    "SignalRequest": "vtc.tokens",
    "VisualTokens": "vtc.tokens",
}

__all__ = ["__version__", *_EXPORTS]


if not TYPE_CHECKING:  # where a misspelt name is an error

    def __getattr__(name: str) -> Any:
        if name in _EXPORTS:
            value = getattr(importlib.import_module(_EXPORTS[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module 'vtc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
