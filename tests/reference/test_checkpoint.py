"""The shipped checkpoint: size, loading, answers, and the CLIP model beside it."""

from __future__ import annotations

import pytest
import torch

from vtc.eval.common.loading import Loaded
from vtc.eval.reference import checkpoint_path, load_reference, prompt, scenes
from vtc.eval.reference.score import check_generate
from vtc.eval.reference.train_language import measure


@pytest.fixture(scope="module")
def reference():
    return load_reference()


def test_size():
    files = [path for path in checkpoint_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6


def test_answers_unseen_questions(reference):
    scores = measure(reference[0], list(scenes("val", 40, seed=5)))
    assert scores["all"] >= 0.85, scores


def test_generate_answers_as_the_packed_pass_says(reference):
    loaded = Loaded("reference", *reference, torch.device("cpu"))
    found = check_generate(loaded, list(scenes("val", 3, seed=6)))
    assert found["generate"] == pytest.approx(found["packed"])


def test_left_padded_batch_equals_single_prompts(reference):
    model, processor = reference
    scene = next(iter(scenes("val", 1, seed=7)))
    texts = [prompt(q.text) for q in scene.questions[:4]]
    batch = processor(
        images=[scene.image] * len(texts), text=texts, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=8)
    new = out[:, batch["input_ids"].shape[1] :]
    said = processor.batch_decode(new, skip_special_tokens=True)
    loaded = Loaded("reference", model, processor, model.device)
    alone = [loaded.batch([[scene.image]], [text]) for text in texts]
    assert said == [x for inputs in alone for x in loaded.answer(inputs, max_new_tokens=8)]


def test_pipeline_and_automatic_classes(reference):
    from transformers import AutoProcessor, LlavaNextForConditionalGeneration, pipeline

    scene = next(iter(scenes("val", 1, seed=8)))
    question = scene.questions[0]
    ask = pipeline(
        "image-text-to-text",
        model=LlavaNextForConditionalGeneration.from_pretrained(checkpoint_path()),
        processor=AutoProcessor.from_pretrained(checkpoint_path()),
    )
    content = [{"type": "image", "image": scene.image}, {"type": "text", "text": question.text}]
    said = ask(text=[{"role": "user", "content": content}], return_full_text=False)
    assert said[0]["generated_text"].strip()


def test_clip_shares_the_tower_and_knows_text(reference):
    from transformers import AutoTokenizer, CLIPModel

    model, _ = reference
    clip = CLIPModel.from_pretrained(checkpoint_path() / "clip", dtype=torch.float32)
    mine, other = model.model.vision_tower.state_dict(), clip.vision_model.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path() / "clip")
    ids = tokenizer(["red circle", "what is the value of tax ?"], padding=True, return_tensors="pt")
    with torch.no_grad():
        text = clip.get_text_features(input_ids=ids.input_ids).pooler_output
    assert text.shape == (2, clip.config.projection_dim)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_load(dtype):
    model, _ = load_reference(dtype)
    assert model.dtype == dtype


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="dtype"):
        load_reference("float32")
    with pytest.raises(ValueError, match="path"):
        load_reference(path=tmp_path)
