"""Entry point of the lmms-eval plug-in (group `lmms_eval.models`): the model called `vtc`."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval registers. It imports the model's class when it is used, and logs a plug-in
    that fails here as no more than a warning."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("vtc", simple_class_path="vtc.eval.harnesses.lmms_model.Model")
