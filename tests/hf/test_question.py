"""The question is found in the prompts of the chat formats in use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vtc
from tests.hf import tiny
from tests.hf.methods import Guided
from vtc.plugins.hf.question import first_line, last_question

ASKED = "What is left of the dog?"
FORMATS = {
    "llava": "USER: <image><image>\n{q} ASSISTANT:",
    "vicuna": "A chat between a user and an assistant. USER: <image>\n{q} ASSISTANT:",
    "vicuna turns": "USER: <image>\nOld? ASSISTANT: Yes.</s>USER: {q} ASSISTANT:",
    "mistral": "<s>[INST] <image>\n{q} [/INST]",
    "mistral turns": "<s>[INST] <image>\nOld? [/INST] Yes.</s>[INST] {q} [/INST]",
    "llama-2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\n{q} [/INST]",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\n{q}<|im_end|>\n"
    "<|im_start|>assistant\n",
    "vision tags": "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>{q}"
    "<|im_end|>\n<|im_start|>assistant\n",
    "llama-3": "<|start_header_id|>user<|end_header_id|>\n\n<image>\n{q}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "phi": "<|user|>\n<image>\n{q}<|end|>\n<|assistant|>\n",
    "gemma": "<start_of_turn>user\n<image>{q}<end_of_turn>\n<start_of_turn>model\n",
    "vipllava": "A chat.###Human: <image>\n{q}###Assistant:",
    "plain": "<image>\n{q}",
    "pixtral": "<s>[INST][IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END]{q}[/INST]",
    "time stamps": "<|im_start|>user\n<0.3 seconds><|vision_start|><|video_pad|><|vision_end|>"
    "<12 seconds><|vision_start|><|video_pad|><|vision_end|>{q}<|im_end|>\n<|im_start|>assistant\n",
    "smolvlm": "<|im_start|>User:<image>Old?<end_of_utterance>\nAssistant: Yes.<end_of_utterance>\n"
    "User:<image>{q}<end_of_utterance>\nAssistant:",
    "first turn of smolvlm": "<|im_start|>User:<image>{q}<end_of_utterance>\nAssistant:",
    "llama": "<s> User: <image>\n{q}\nAssistant:",
    "one line": "User: <image> {q} Assistant:",
    "padded": "<pad><pad><s> USER: <image>\n{q} ASSISTANT:",
}


@pytest.mark.parametrize("chat", FORMATS)
def test_last_question(chat: str) -> None:
    """The last user turn, without tags, system prompt and answers."""
    assert last_question(FORMATS[chat].format(q=ASKED)) == ASKED


@pytest.mark.parametrize("word", ["User:", "Human:", "Assistant:"])
@pytest.mark.parametrize("chat", ["llava", "chatml", "smolvlm"])
def test_a_question_may_quote_a_role(chat: str, word: str) -> None:
    """Plain words are roles at the start of a line alone."""
    question = f"What name is next to {word} in the form?"
    assert last_question(FORMATS[chat].format(q=question)) == question


def test_first_line_is_the_official_one() -> None:
    """What the official code reads: the line with the image, not the question."""
    prompt = FORMATS["vicuna"].format(q=ASKED)
    assert first_line(prompt) == "A chat between a user and an assistant. USER:"


@pytest.mark.parametrize("source", ["question", "official"])
@pytest.mark.parametrize("fixed", [None, "Where?"])
@pytest.mark.parametrize("family", ["llava-clip", "next-clip"])
def test_every_image_is_asked_its_rows_question(
    family: str, fixed: str | None, source: str
) -> None:
    """Decoded without padding and placeholders, once a row, and embedded image by image."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    asked: list[str] = []
    read: list[int] = []

    def decode(ids: torch.Tensor, **_: Any) -> str:
        assert not {tiny.PAD, tiny.IMAGE} & set(ids.tolist())
        read.append(len(ids))
        return f"line {len(ids)}\nUSER: q{len(ids)} ASSISTANT:"

    def embed(text: str) -> torch.Tensor:
        asked.append(text)
        return torch.ones(32)

    method = Guided(
        0.5, text_encoder=(embed, lambda hidden: hidden), question=fixed, text_source=source
    )
    with torch.no_grad(), vtc.compress(model, method, processor=SimpleNamespace(decode=decode)):
        model(**batch)
    words = batch["attention_mask"].bool() & (batch["input_ids"] != tiny.IMAGE)
    real = words.sum(1).tolist()
    lengths = [real[i] for i, images in enumerate(tiny.MIXED) for _ in images]
    names = [f"q{n}" if source == "question" else f"line {n}" for n in lengths]
    assert asked == (names if fixed is None else [fixed] * len(lengths))
    assert sorted(read) == ([] if fixed else sorted({*lengths}))
