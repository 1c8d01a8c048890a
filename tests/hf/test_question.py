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
    "padded": "<pad><pad><s> USER: <image>\n{q} ASSISTANT:",
}


@pytest.mark.parametrize("chat", FORMATS)
def test_last_question(chat: str) -> None:
    """The last user turn, without tags, system prompt and answers."""
    assert last_question(FORMATS[chat].format(q=ASKED)) == ASKED


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
    """Decoded without padding, once a row, and handed to the text encoder image by image."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    asked: list[str] = []
    read: list[int] = []

    def decode(ids: torch.Tensor, **_: Any) -> str:
        assert tiny.PAD not in ids.tolist()
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
    real = batch["attention_mask"].sum(1).tolist()
    lengths = [real[i] for i, images in enumerate(tiny.MIXED) for _ in images]
    names = [f"q{n}" if source == "question" else f"line {n}" for n in lengths]
    assert asked == (names if fixed is None else [fixed] * len(lengths))
    assert sorted(read) == ([] if fixed else sorted({*lengths}))
