"""`vtc`: visual-token compression for vision-language models.

    with vtc.compress(model, "globalcom2", retention=0.25) as run:
        out = model.generate(**inputs)

Importing `vtc` patches nothing and imports neither transformers nor triton nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "VTCError": "vtc.errors",
    "Method": "vtc.methods.base",
    "VisualTokens": "vtc.tokens",
    "CompressedTokens": "vtc.tokens",
    "MergeIndex": "vtc.tokens",
    "SIGNALS": "vtc.tokens",
    "SignalRequest": "vtc.tokens",
    "register_method": "vtc.registry",
    "list_methods": "vtc.registry",
    "create_method": "vtc.registry",
    "CompressionConfig": "vtc.config",
    "add_arguments": "vtc.config",
    "compress": "vtc.api",
    "apply": "vtc.api",
    "remove": "vtc.api",
    "apply_from_config": "vtc.api",
    "model_defaults": "vtc.api",
    "Report": "vtc.report",
    "visualize": "vtc.pictures",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'vtc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
