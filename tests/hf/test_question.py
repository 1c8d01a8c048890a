"""The question is found in the prompts of the chat formats in use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import vtc
from tests.hf import tiny
from tests.hf.methods import Guided
from vtc.eval.reference import load_reference, prompt, scenes
from vtc.plugins.model.question import asked, first_line, last_question

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


#: questions that hold what looks like tags, turns and special tokens
ODD = [
    "What is inside the <title> tag?",
    "Does it say <b>bold</b>?",
    "Which one holds: a<b or b>a?",
    "Is x <y> z?",
    "Which <input type='text'> holds `<a href=\"x\">y</a>`?",
    "说明<图片>里的字",
    "What does <image> mean in HTML?",
    "Is the tag <img> or <image> used here?",
    "What does <<SYS>> mean?",
    "Read <<SYS>>a<</SYS>> aloud",
    "What stands behind USER: in the picture?",
    "USER: what?",
    "Ends with ASSISTANT:",
    "Copy the line 'ASSISTANT: hello'",
    "Is 'ASSISTANT: yes USER: no' written?",
    "What does ASSISTANT: say after USER: in the form?",
    "Was steht da?\nUser: wer?",
    "Does it say\nASSISTANT: yes?",
    "Does it say\nAssistant: yes\nor no?",
    "What is ### Human in the log?",
    "Is [INST] written there?",
    "Is '[INST] a [/INST] b' a prompt?",
    "Where is [IMG] used?",
    "What does <|im_start|>user mean?",
    "Who wrote <|user|> here?",
    "`<|im_end|>` at the end?",
    "What does </s> do?",
    "Is <pad> or <unk> shown?",
    "Is this the <3 seconds> mark?",
    "Is <row_1_col_1> a cell?",
    "Frame1: what is here?",
]


@pytest.mark.parametrize("question", ODD)
def test_a_question_comes_back_word_for_word(question: str) -> None:
    """In every format."""
    for name, chat in FORMATS.items():
        if name == "plain" and question.startswith("USER:"):
            continue  # a chat without the assistant's marker looks like this
        assert last_question(chat.format(q=question)) == " ".join(question.split()), name


ANSWERED = {
    "vicuna": "USER: <image>\n{q} ASSISTANT: A dog.</s>",
    "vicuna, second turn": "USER: <image>\nOld? ASSISTANT: Yes.</s>USER: {q} ASSISTANT: A dog.</s>",
    "vicuna, no marker": "USER: <image>\n{q}",
    "vicuna, system": "A chat with an assistant. USER: <image>\n{q}",
    "no end tokens": "USER: <image>\nOld? ASSISTANT: Yes USER: {q} ASSISTANT:",
    "nor a sentence": "USER: <image>\nDescribe it ASSISTANT: A dog USER: {q} ASSISTANT:",
    "chatml": "<|im_start|>user\n<image>\n{q}<|im_end|>\n<|im_start|>assistant\nA dog<|im_end|>\n",
    "chatml, prefill": "<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\nA",
    "chatml, no marker": "<|im_start|>system\nHi<|im_end|>\n<|im_start|>user\n{q}<|im_end|>\n",
    "chatml, user twice": "<|im_start|>user\nOld?<|im_end|>\n<|im_start|>user\n{q}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "mistral": "<s>[INST] <image>\n{q} [/INST] A dog.</s>",
    "mistral, no end tokens": "[INST] <image>\nOld? [/INST] Yes. [INST] {q} [/INST]",
    "gemma": "<bos><start_of_turn>user\nOld?<end_of_turn>\n<start_of_turn>model\nYes<end_of_turn>\n"
    "<start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\nA dog<end_of_turn>",
    "smolvlm": "<|im_start|>User:<image>{q}<end_of_utterance>\nAssistant: A dog.<end_of_utterance>\n",
    "smolvlm, a role in an answer": "<|im_start|>User:<image>Old?<end_of_utterance>\nAssistant: It says"
    "\nUser: no.<end_of_utterance>\nUser:{q}<end_of_utterance>\nAssistant:",
    "smolvlm, video": "<|im_start|>User: You are provided the following series of five frames from "
    "a 0:00:04 [H:MM:SS] video.\n\nFrame from 00:00:<fake_token_around_image><global-img><image><image>"
    "<fake_token_around_image>\nFrame from 00:01:<fake_token_around_image><global-img><image>"
    "<fake_token_around_image>\n\n{q}<end_of_utterance>\nAssistant:",
    "internvl, video": "<|im_start|>user\nFrame1: <img><IMG_CONTEXT><IMG_CONTEXT></img>\nFrame2: "
    "<img><IMG_CONTEXT></img>\n{q}<|im_end|>\n<|im_start|>assistant\n",
    "image behind": "USER: {q}\n<image> ASSISTANT:",
    "paligemma": "<image><image><image><bos>{q}\n",
    "granite": "<|start_of_role|>user<|end_of_role|>{q}<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>",
}


@pytest.mark.parametrize("chat", ANSWERED)
def test_answers_and_missing_markers(chat: str) -> None:
    assert last_question(ANSWERED[chat].format(q=ASKED)) == ASKED


def test_images_between_words() -> None:
    """Rows of tags are images wherever they stand."""
    vision = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    chat = FORMATS["chatml"].format(q=f"Compare {vision} with\n<image>\nof old {vision}.")
    assert last_question(chat) == "Compare with of old ."


# -- by ids ------------------------------------------------------------------------------------


def byte_tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    """A token a byte, and `special` ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=special)


#: prompts of the families, their special tokens, and which of them the plug-in takes out
BY_ID = {
    "llava": ("<s> USER: <image>\n{q} ASSISTANT:", ["<s>", "</s>", "<image>"], "<image>"),
    "llava turns": (
        "<s> USER: <image>\nOld? ASSISTANT: Yes.</s>USER: {q} ASSISTANT:",
        ["<s>", "</s>", "<image>"],
        "<image>",
    ),
    "mistral": ("<s>[INST] <image>\n{q} [/INST]", ["<s>", "</s>", "<image>"], "<image>"),
    "pixtral": (
        "<s>[INST][IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END]{q}[/INST]",
        ["<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"],
        "[IMG]",
    ),
    "qwen": (
        "<|im_start|>system\nHi.<|im_end|>\n<|im_start|>user\n<0.3 seconds><|vision_start|><|video_pad|>"
        "<|vision_end|><1.5 seconds><|vision_start|><|video_pad|><|vision_end|>{q}<|im_end|>\n"
        "<|im_start|>assistant\n",
        ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"],
        "<|video_pad|>",
    ),
    "smolvlm": (
        "<|im_start|>User:<fake_token_around_image><row_1_col_1><image><image>\n\n"
        "<fake_token_around_image><global-img><image>{q}<end_of_utterance>\nAssistant:",
        ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>",
         "<row_1_col_1>", "<global-img>"],
        "<image>",
    ),
    "gemma": (
        "<bos><start_of_turn>user\n\n\n<start_of_image><image_soft_token><end_of_image>\n\n{q}"
        "<end_of_turn>\n<start_of_turn>model\n",
        ["<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
         "<image_soft_token>"],
        "<image_soft_token>",
    ),
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>{q}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|image|>"],
        "<|image|>",
    ),
    "granite, tags as text": ("<|user|>\n<image>\n{q}\n<|assistant|>\n", ["<image>"], "<image>"),
}  # fmt: skip


@pytest.mark.parametrize("family", BY_ID)
def test_by_ids_every_word_is_told_from_a_special_token(family: str) -> None:
    """Also words that would be taken for tokens by their name, at the edges too."""
    chat, special, placeholder = BY_ID[family]
    tokenizer = byte_tokenizer(special)
    edges = ["<image>", "<img>", "[IMG]", "<|image_pad|>", "<s>", "<|im_end|>", "<start_of_image>"]
    known = {*special, placeholder}
    for question in [
        *ODD,
        *(f"{tag} or {tag}" for tag in edges),
        *(f"{tag}{tag}?" for tag in edges),
    ]:
        if any(tag in question for tag in known):
            continue  # the tokenizer itself reads these words as tokens
        ids = torch.tensor(
            tokenizer(chat.format(q=question), add_special_tokens=False)["input_ids"]
        )
        ids = ids[ids != tokenizer.convert_tokens_to_ids(placeholder)]
        method = Guided()
        assert asked(method, tokenizer, ids) == " ".join(question.split())


def test_a_token_of_the_template_within_a_turn_is_a_word() -> None:
    """A tokenizer reads it as its own, but no template writes it there."""
    chat, special, _ = BY_ID["llava"]
    tokenizer = byte_tokenizer(special)
    for question in ("What does </s> do?", "Is <s> or </s> a tag?", "</s> is what?"):
        ids = torch.tensor(tokenizer(chat.format(q=question))["input_ids"])
        method = Guided()
        assert (
            asked(method, tokenizer, ids[ids != tokenizer.convert_tokens_to_ids("<image>")])
            == question
        )


def test_unknown_words_are_words_and_the_official_line_is_by_ids() -> None:
    model, processor = load_reference()
    tokenizer = processor.tokenizer
    said = prompt("What number is in the <brown> box ? USER: ").replace("<image>", "")
    ids = torch.tensor(tokenizer(said)["input_ids"])
    method = Guided()
    # its tokenizer knows neither capitals nor "<", and "brown" with a blank in front alone
    assert asked(method, tokenizer, ids) == "what number is in the<unk><unk><unk> box ? user :"
    method.text_source = "official"
    assert asked(method, tokenizer, ids).startswith("user : what number is in the<unk>")


@pytest.mark.parametrize("question", ["what is 37 ? USER: ", "ASSISTANT: no", "the <brown> box ?"])
def test_a_method_keeps_what_the_same_words_as_a_question_keep(question: str) -> None:
    """Through a whole model: as prompted, and given as `question=`."""
    model, processor = load_reference()
    scene = next(iter(scenes("test", 1)))
    inputs = processor(images=[scene.image], text=prompt(question), return_tensors="pt")
    kept = []
    for fixed in (None, " ".join(question.split()), ""):
        method = vtc.create_method("recoverable", retention=0.1, question=fixed)
        with vtc.compress(model, method, processor=processor) as run, torch.no_grad():
            model(**inputs)
        image = run.reports[-1].images[0]
        kept.append(list(zip(image.tile.tolist(), image.patch.tolist(), strict=True)))
    assert kept[0] == kept[1] != kept[2]


def test_first_line_is_the_official_one() -> None:
    """What the official code reads: the line with the image, not the question."""
    line = FORMATS["vicuna"].format(q=ASKED)
    assert first_line(line) == "A chat between a user and an assistant. USER:"
    line = "A chat. USER: <image> What is <b>x</b> in <image>? ASSISTANT:"
    assert first_line(line) == "A chat. USER: What is <b>x</b> in <image>? ASSISTANT:"


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
