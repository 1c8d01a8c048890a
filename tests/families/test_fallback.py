"""A family without an adapter, and the transformers versions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

import vtc
from tests.families import tiny
from vtc.plugins import hf

GREEDY = dict(max_new_tokens=4, do_sample=False)


def aya() -> Any:
    """Aya Vision: SigLIP, a pixel shuffle, tiles as images; vtc has no adapter for it."""
    torch.manual_seed(0)
    config = tf.AyaVisionConfig(
        text_config=tf.Cohere2Config(**tiny.TEXT),
        vision_config=tiny.siglip(),
        downsample_factor=2,
        vision_feature_layer=-1,
        adapter_layer_norm_eps=1e-6,
        alignment_intermediate_size=64,
        **tiny.IDS,
    )
    return tiny.finished(tf.AyaVisionForConditionalGeneration(config))


def inputs() -> dict[str, Any]:
    batch = tiny.inputs("gemma3", tiny.MIXED)
    del batch["token_type_ids"]
    return batch


@pytest.mark.parametrize("method", ["random", "uniform", "pool"])
def test_unknown_family_is_announced_and_works(method: str) -> None:
    model, batch = aya(), inputs()
    with torch.no_grad():
        plain = model(**batch).logits
        with pytest.warns(UserWarning, match="AyaVision.*no adapter"):
            run = vtc.compress(model, method, retention=1.0)
        with run:
            assert torch.equal(model(**batch).logits, plain)
        with pytest.warns(UserWarning), vtc.compress(model, method, retention=0.5) as run:
            out = model.generate(**batch, **GREEDY)
            for row in range(len(batch["input_ids"])):
                one = tiny.alone("gemma3", tiny.MIXED, row)
                del one["token_type_ids"]
                assert torch.equal(model.generate(**one, **GREEDY)[0, -4:], out[row, -4:])
        assert run.reports[0].images[0].patches_after == 2
        assert torch.equal(model(**batch).logits, plain)


def test_signals_of_fused_patches_need_an_adapter() -> None:
    model, batch = aya(), inputs()
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
