"""A family without an adapter, and the transformers versions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vtc
from tests.families import matrix, tiny
from tests.families.models import Family, glm4v, qwen3_vl_moe, qwen_inputs, qwen_item
from vtc.plugins import hf
from vtc.plugins.hf.adapters.fallback import Fallback


def test_unknown_family_is_announced() -> None:
    """That it works is for test_matrix.py to show."""
    model, batch = tiny.build(tiny.UNKNOWN), tiny.inputs(tiny.UNKNOWN, tiny.MIXED)
    with pytest.warns(UserWarning, match="AyaVision.*no adapter"):
        run = vtc.compress(model, "uniform", retention=0.5)
    with torch.no_grad(), run:
        model(**batch)
    assert run.reports[0].images[0].patches_after == 2


def test_draws_where_pixels_are_one_list_of_patches(monkeypatch: Any) -> None:
    """GLM-4V: rows of patches, not images; an image keeps the same tokens alone and in a batch."""
    monkeypatch.setitem(tiny.FAMILIES, "glm4v", Family(glm4v, qwen_item(False), qwen_inputs))
    model, batch = tiny.build("glm4v"), tiny.inputs("glm4v", tiny.MIXED)
    kept = []
    with pytest.warns(UserWarning, match="Glm4v.*no adapter"):
        run = vtc.compress(model, "random", retention=0.5)
    with torch.no_grad(), run:
        for inputs in (batch, *(tiny.alone("glm4v", tiny.MIXED, row) for row in (0, 2, 3))):
            types = (inputs["input_ids"] == tiny.IMAGE).long()
            model(**inputs, mm_token_type_ids=types)
            kept.append([image.kept for image in run.reports[-1]])
    assert kept[0] == [image for row in kept[1:] for image in row]
    assert [len(image) for image in kept[0]] == [3, 4, 8, 8] and kept[0][2] != kept[0][3]


def test_draws_where_nothing_tells_whose_pixels_are_whose() -> None:
    """The features stand for the image then."""
    features = [torch.ones(1, 4, 8), torch.zeros(1, 9, 8)]
    call: Any = SimpleNamespace(
        pixels=torch.ones(60, 3), kwargs={}, modality="image", output=SimpleNamespace()
    )
    call.output.pooler_output = features
    fallback = Fallback()
    units = fallback.units(call)
    assert torch.equal(fallback.pixels(call, units, 1), features[1][0])


@pytest.mark.parametrize("method", ["random", "globalcom2"])
def test_a_mixture_of_experts_is_read_like_its_dense_twin(method: str, monkeypatch: Any) -> None:
    """Qwen3-VL-MoE has the vision side of Qwen3-VL."""
    moe = Family(qwen3_vl_moe, qwen_item(True), qwen_inputs, ("image", "video"))
    monkeypatch.setitem(tiny.FAMILIES, "qwen3_vl_moe", moe)
    for video in (False, True):
        assert matrix.cell("qwen3_vl_moe", video, method, "forward", "left", "original") == "ok"


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


@pytest.mark.parametrize("version", ["5.17.0", "5.25.0", "6.0.0"])
def test_untested_versions_are_named(version: str) -> None:
    assert f"transformers {version}" in (hf.version_note(version) or "")


@pytest.mark.parametrize("version", ["5.18.0", "5.23.0", "5.20.2", "5.24.1"])
def test_tested_versions_pass(version: str) -> None:
    assert hf.version_note(version) is None
