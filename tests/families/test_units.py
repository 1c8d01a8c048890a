"""The units of a family follow from its configuration and what its processor made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtc
from tests.families import tiny
from vtc import VTCError
from vtc.plugins.hf.adapters.base import Call
from vtc.plugins.model.families import units_of
from vtc.plugins.model.units import Unit

CASES = [
    (name, modality)
    for name, family in tiny.FAMILIES.items()
    if name != tiny.UNKNOWN
    for modality in family.kinds
]


@pytest.mark.parametrize("family,modality", CASES)
def test_as_in_a_call(family: str, modality: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the adapter says in a real call; and as many tokens as the model's own encoder makes."""
    model = tiny.built(family)
    batch = tiny.inputs(family, tiny.rows_of(family, modality == "video"))
    seen: dict[str, tuple[list[Unit], int]] = {}

    with vtc.compress(model, "uniform", retention=0.5) as run, torch.no_grad():
        adapter: Any = type(run._patch.adapter)
        own = adapter.units

        def units(self: Any, call: Call) -> list[Unit]:
            tokens = sum(part.flatten(0, -2).shape[0] for part in call.output.pooler_output)
            seen[call.modality] = own(self, call), tokens
            return seen[call.modality][0]

        monkeypatch.setattr(adapter, "units", units)
        model(**batch)
    found = units_of(model.config, batch, modality)
    units, tokens = seen[modality]
    assert found == units
    assert sum(len(unit.layout) for unit in found) == tokens
    assert (
        int((batch["input_ids"] == getattr(model.config, f"{modality}_token_id")).sum()) == tokens
    )


def test_another_family_is_named() -> None:
    config = tiny.build(tiny.UNKNOWN).config
    with pytest.raises(
        VTCError, match="model_type: got 'aya_vision', allowed are .*gemma3, .*qwen2_vl"
    ):
        units_of(config, {})
