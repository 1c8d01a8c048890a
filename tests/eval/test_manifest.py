"""What a run says of the model that made it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vtc.eval import reference, reference_photo
from vtc.eval.common import manifest

SHIPPED = {"reference": reference, "photo": reference_photo}


def small() -> Any:
    model = torch.nn.Linear(2, 2)
    model.config, model.dtype = SimpleNamespace(), torch.float32
    return model


@pytest.mark.parametrize("name", SHIPPED)
def test_other_weights_of_a_shipped_model_are_another_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or runs of two trainings would stand in one table."""
    monkeypatch.setattr(SHIPPED[name], "checkpoint_path", lambda: tmp_path)
    for weights in (b"first", b"again"):
        (tmp_path / "trained.safetensors").write_bytes(weights)
        wanted = hashlib.sha256(b"trained.safetensors 5\n" + weights).hexdigest()
        assert manifest.model(name, small())["sha256"] == wanted
