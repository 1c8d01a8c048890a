"""`pipeline("image-text-to-text")` on newer families, with processors made offline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma3Processor, Idefics3Processor, pipeline
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

import vtc
from tests.families import by_hand, tiny
from tests.hf.test_pipeline import TEMPLATE, chat, tokenizer


def gemma3() -> Any:
    tags = {"<image>": tiny.IMAGE, "<start>": 80, "<end>": 81}
    words = tokenizer(
        tags,
        extra_special_tokens={
            "image_token": "<image>",
            "boi_token": "<start>",
            "eoi_token": "<end>",
        },
    )
    images = Gemma3ImageProcessorPil(size={"height": tiny.TILE, "width": tiny.TILE})
    template = TEMPLATE.replace("<image>", "<start>")
    return Gemma3Processor(images, words, image_seq_length=4, chat_template=template)


def idefics3() -> Any:
    tags = {"<image>": tiny.IMAGE, "<fake_token_around_image>": 92, "<global-img>": 93}
    tags |= {f"<row_{r + 1}_col_{c + 1}>": 70 + 4 * r + c for r in range(2) for c in range(4)}
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * tiny.TILE}, max_image_size={"longest_edge": tiny.TILE}
    )
    words = tokenizer({**tags, "<end_of_utterance>": 88})
    return Idefics3Processor(images, words, image_seq_len=4, chat_template=TEMPLATE)


@pytest.mark.parametrize("family", ["gemma3", "idefics3"])
def test_pipeline_returns_the_answer(family: str) -> None:
    """Single and batched: the text is what the language model alone decodes, prompt cut off."""
    model, ours = tiny.build(family), {"gemma3": gemma3, "idefics3": idefics3}[family]()
    method = vtc.create_method("uniform", retention=0.5)
    pipe = pipeline("image-text-to-text", model=model, processor=ours)
    ask = dict(max_new_tokens=5, do_sample=False)
    settings = dict(return_full_text=False, generate_kwargs=ask)
    chats, want = [chat(0), chat(1)], []
    for each in chats:
        batch = ours.apply_chat_template(
            each, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        short = by_hand.shorten(model, dict(batch), method, "original")
        want.append(ours.decode(by_hand.generate(model, short, **ask), skip_special_tokens=True))
    with torch.no_grad(), vtc.compress(model, method) as run:
        singles = [pipe(text=each, **settings)[0]["generated_text"] for each in chats]
        together = [out[0]["generated_text"] for out in pipe(text=chats, batch_size=2, **settings)]
    assert [text.strip() for text in singles] == want
    assert [text.strip() for text in together] == want
    assert len(run.reports) == 3
