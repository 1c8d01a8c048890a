"""`pipeline("image-text-to-text")` and a processor made offline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    pipeline,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import vtc
from tests.hf import by_hand, tiny
from tests.hf.methods import Norms

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %} "
    "{% endfor %}ASSISTANT:"
)
# the same number of crops: the pipeline cannot stack others, compressed or not
SIZES = [(40, 60), (60, 40)]


def tokenizer(tags: dict[str, int], **more: Any) -> Any:
    """Whole words with the tiny models' ids: w0 .. w95, and tags at their places."""
    words = {f"w{i}": i for i in range(tiny.VOCAB)}
    tags = {"<pad>": tiny.PAD, "<s>": tiny.BOS, "</s>": tiny.EOS, **tags}
    special = {**tags, "<unk>": 3, "USER:": 4, "ASSISTANT:": 5}
    words = {w: i for w, i in words.items() if i not in special.values()} | special
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(list(tags))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        **more,
    )


def processor(family: str) -> Any:
    """The family's processor around that tokenizer."""
    size = dict(
        size={"shortest_edge": tiny.TILE}, crop_size={"height": tiny.TILE, "width": tiny.TILE}
    )
    common = dict(
        tokenizer=tokenizer({"<image>": tiny.IMAGE}),
        patch_size=tiny.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    )
    if family.startswith("next"):
        images = LlavaNextImageProcessorPil(image_grid_pinpoints=tiny.PINPOINTS, **size)
        return LlavaNextProcessor(image_processor=images, **common)
    return LlavaProcessor(image_processor=CLIPImageProcessorPil(**size), **common)


def chat(index: int) -> list[dict[str, Any]]:
    """One conversation with one random picture."""
    noise = np.random.default_rng(index).integers(0, 255, (*SIZES[index], 3), dtype=np.uint8)
    text = "w20 w21 w22" + " w30" * index
    content = [
        {"type": "image", "image": Image.fromarray(noise)},
        {"type": "text", "text": text},
    ]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("family", ["llava-clip", "next-clip"])
def test_pipeline_returns_the_answer(family: str) -> None:
    """Single and batched: the text is what the language model alone decodes, prompt cut off."""
    model, ours = tiny.build(family), processor(family)
    pipe = pipeline("image-text-to-text", model=model, processor=ours)
    ask = dict(return_full_text=False, generate_kwargs=dict(max_new_tokens=5, do_sample=False))
    chats = [chat(0), chat(1)]
    want = []
    for each in chats:
        batch = ours.apply_chat_template(
            each, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        (row,) = by_hand.rows(model, dict(batch), Norms(0.5))
        want.append(ours.decode(by_hand.greedy(model, row, 5)[0], skip_special_tokens=True))
    bare = [out["generated_text"] for out in pipe(text=chats[0], **ask)]
    with vtc.compress(model, Norms(0.5)) as run:
        singles = [pipe(text=each, **ask)[0]["generated_text"] for each in chats]
        together = [out[0]["generated_text"] for out in pipe(text=chats, batch_size=2, **ask)]
    assert [text.strip() for text in singles] == want
    assert [text.strip() for text in together] == want
    assert len(run.reports) == 3 and run.reports[0].images[0].retention == pytest.approx(
        0.5, abs=0.03
    )
    with torch.no_grad():
        assert [out["generated_text"] for out in pipe(text=chats[0], **ask)] == bare
    assert bare[0].strip() != want[0]
