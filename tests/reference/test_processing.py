"""Tokenizer, and the training path against the real processor and the real packing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vtc.eval.reference import prompt, scenes
from vtc.eval.reference.labels import phrase
from vtc.eval.reference.lexicon import DIGITS, vocabulary
from vtc.eval.reference.model import build_clip, build_llava, build_processor
from vtc.eval.reference.packing import answer_logits, pack
from vtc.eval.reference.scene import GRID_WEIGHTS, make_scene
from vtc.eval.reference.tiles import GRIDS, normalise, select_grid, split_tiles, token_layout
from vtc.eval.reference.tokenizer import EOS, build_tokenizer


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def model():
    return build_llava(build_clip(1), 1).eval()


def test_numbers_and_words_decode_as_written(processor):
    tokenizer = processor.tokenizer
    for text in ["37", "07", "4", "top left", "tax", "yes", *vocabulary()]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    ids = tokenizer("37", add_special_tokens=False).input_ids
    assert len(ids) == 2 and len(DIGITS) == 10


def test_spacing_and_case_do_not_matter(processor):
    tokenizer = processor.tokenizer
    assert tokenizer("What is the value of TAX?").input_ids == (
        tokenizer("what is  the value of tax ?\n").input_ids
    )
    assert tokenizer.unk_token_id in tokenizer("zebra").input_ids


def test_every_question_and_answer_is_in_the_vocabulary(processor):
    tokenizer = processor.tokenizer
    for scene in scenes("val", 30):
        texts = [q.text for q in scene.questions] + [q.answer for q in scene.questions]
        texts += [phrase(item) for item in scene.objects]
        assert not any(tokenizer.unk_token_id in tokenizer(t).input_ids for t in texts)


def test_chat_template_gives_the_prompt(processor):
    question = "is there a red circle ?"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    made = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    tokenizer = processor.tokenizer
    assert tokenizer(made).input_ids == tokenizer(prompt(question)).input_ids


def test_clip_tokenizer_ends_with_the_end_token():
    tokenizer = build_tokenizer(end_token=True, max_length=77)
    ids = tokenizer("a red circle", padding="max_length", truncation=True).input_ids
    assert len(ids) == 77
    assert ids.index(tokenizer.eos_token_id) == 4
    assert tokenizer.convert_ids_to_tokens(2) != EOS


def test_pixels_and_token_counts_equal_the_processor(processor):
    seen = set()
    for index in range(40):
        grid = list(GRID_WEIGHTS)[index % len(GRID_WEIGHTS)]
        scene = make_scene("val", 0, index, None, {grid: 1.0})
        real = processor(images=scene.image, text=prompt("hello"), return_tensors="np")
        fast = normalise(split_tiles(scene.image))
        assert np.array_equal(real["pixel_values"][0], fast)
        image_tokens = int((real["input_ids"] == processor.image_token_id).sum())
        assert image_tokens == len(token_layout(scene.image.height, scene.image.width))
        seen.add(scene.grid)
    assert seen == set(GRIDS)


def test_grid_choice_equals_transformers(processor):
    from transformers.image_processing_utils import select_best_resolution

    rng = np.random.default_rng(0)
    pinpoints = processor.image_processor.image_grid_pinpoints
    for height, width in rng.integers(20, 700, (200, 2)):
        real = select_best_resolution((int(height), int(width)), pinpoints)
        assert tuple(side // 64 for side in real) == select_grid(int(height), int(width))


def test_split_tiles_refuses_images_that_need_resizing():
    from PIL import Image

    with pytest.raises(ValueError, match="grid"):
        split_tiles(Image.new("RGB", (300, 200)))


def test_token_order_equals_pack_image_features(model):
    for grid in GRIDS:
        scene = make_scene("val", 0, 3, None, {grid: 1.0})
        tiles = 1 + grid[0] * grid[1]
        width = model.config.text_config.hidden_size
        marked = torch.zeros(tiles, 64, width)
        marked[..., 0] = torch.arange(tiles)[:, None]
        marked[..., 1] = torch.arange(64)
        size = torch.tensor([[scene.image.height, scene.image.width]])
        newline = torch.full((width,), -1.0)
        packed, _ = model.model.pack_image_features([marked], size, "default", newline)
        layout = token_layout(scene.image.height, scene.image.width)
        assert packed[0][:, 0].tolist() == layout.tile.tolist()
        assert packed[0][:, 1].tolist() == layout.patch.tolist()


def test_packed_logits_equal_separate_prompts(model, processor):
    sample = [make_scene("val", 0, i, None, {(1, 2): 1.0}, questions=5) for i in (1, 2)]
    rng = np.random.default_rng(0)
    packed = pack(sample, processor.tokenizer, rng, mode="plain", filler=False)
    with torch.no_grad():
        logits, targets = answer_logits(model, packed)
    start = 0
    for scene in sample:
        for question in scene.questions:
            text = prompt(question.text)
            inputs = processor(images=scene.image, text=text, return_tensors="pt")
            answer = processor.tokenizer(question.answer, add_special_tokens=False).input_ids
            answer.append(processor.tokenizer.eos_token_id)
            ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], 1)
            inputs["input_ids"], inputs["attention_mask"] = ids, torch.ones_like(ids)
            with torch.no_grad():
                real = model(**inputs).logits[0, -len(answer) - 1 : -1]
            end = start + len(answer)
            assert targets[start:end].tolist() == answer
            torch.testing.assert_close(logits[start:end], real, atol=1e-4, rtol=1e-4)
            start = end
    assert start == len(logits)
