"""Choosing a setting for one's own questions: search, proof, page. `vtc.tune` and `vtc tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtc.eval.tune.run import tune as tune

__all__ = ["tune"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "tune":  # modules of this folder need not import torch for it
            from vtc.eval.tune.run import tune

            return tune
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
