"""A family without an adapter, and the transformers versions."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests.families import tiny
from vtc.plugins import hf


def test_unknown_family_is_announced() -> None:
    """That it works is for test_matrix.py to show."""
    model, batch = tiny.build(tiny.UNKNOWN), tiny.inputs(tiny.UNKNOWN, tiny.MIXED)
    with pytest.warns(UserWarning, match="AyaVision.*no adapter"):
        run = vtc.compress(model, "uniform", retention=0.5)
    with torch.no_grad(), run:
        model(**batch)
    assert run.reports[0].images[0].patches_after == 2


def test_signals_of_fused_patches_need_an_adapter() -> None:
    model, batch = tiny.build(tiny.UNKNOWN), tiny.inputs(tiny.UNKNOWN, tiny.MIXED)
    with pytest.warns(UserWarning), vtc.compress(model, "globalcom2", retention=0.5):
        with pytest.raises(vtc.VTCError, match="64 patches.*16 tokens.*'uniform'"):
            model(**batch)


def test_a_trained_projector_cannot_replace_one_that_fuses() -> None:
    model = tiny.build("qwen2_vl")
    from vtc.methods.tokenflex import TokenFlexProjector

    with pytest.raises(vtc.VTCError, match="projector: .*fuses squares"):
        vtc.apply(model, "tokenflex", retention=0.5, projector=TokenFlexProjector(32, 48))
    assert not hasattr(model, "_vtc")


def test_text_guided_methods_say_what_they_need() -> None:
    with pytest.raises(vtc.VTCError, match="text_encoder: got None"):
        vtc.apply(tiny.build("internvl"), "recoverable", question="what")


@pytest.mark.parametrize("version", ["5.17.0", "5.24.1", "6.0.0"])
def test_untested_versions_are_named(version: str) -> None:
    assert f"transformers {version}" in (hf.version_note(version) or "")


@pytest.mark.parametrize("version", ["5.18.0", "5.23.0", "5.20.2"])
def test_tested_versions_pass(version: str) -> None:
    assert hf.version_note(version) is None
