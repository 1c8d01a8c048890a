"""The user's words become a prompt in which the images stand where they were meant to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jinja2
import pytest

from vtc.errors import VTCError
from vtc.eval.common.prompts import notes, placed, user_prompt

# As the families' templates are: images in front, whatever the order of the parts (LLaVA) ...
FRONT = (
    "{% for m in messages %}USER: {% for c in m.content if c.type == 'image' %}<image>\n{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text + ' ' }}{% endfor %}{% endfor %}ASSISTANT:"
)
# ... or where they stand (Qwen, Gemma)
INLINE = (
    "{% for m in messages %}<|im_start|>user\n{% for c in m.content %}{{ '<v><image></v>' if c.type == "
    "'image' else c.text }}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def processor(template: str | None, **more: Any) -> Any:
    """A processor's texts alone."""

    def apply(messages: Any, add_generation_prompt: bool, tokenize: bool) -> str:
        assert add_generation_prompt and not tokenize
        return jinja2.Template(template or "", keep_trailing_newline=True).render(messages=messages)

    names = dict(enumerate(("</s>", "<image>", "<unk>")))
    tokenizer = SimpleNamespace(
        all_special_ids=list(names),
        unk_token_id=2,
        added_tokens_decoder={number: Token(name) for number, name in names.items()},
    )
    return SimpleNamespace(
        chat_template=template,
        apply_chat_template=apply,
        image_token="<image>",
        tokenizer=tokenizer,
        **more,
    )


class Token(str):
    """As transformers' tokens are."""

    special = True


@pytest.mark.parametrize(
    "template, text, images, expected",
    [
        (FRONT, "What?", 1, "USER: <image>\nWhat? ASSISTANT:"),
        (FRONT, "<image>\nWhat?", 1, "USER: <image>\nWhat? ASSISTANT:"),
        (FRONT, "a\n<image>\nb", 1, "USER: a\n<image>\nb ASSISTANT:"),
        (FRONT, "What? <image>", 1, "USER: What? <image> ASSISTANT:"),
        (FRONT, "<image> or <image>?", 2, "USER: <image> or <image>? ASSISTANT:"),
        (FRONT, "<image><image>Which?", 2, "USER: <image>\n<image>\nWhich? ASSISTANT:"),
        (INLINE, "What?", 1, "<|im_start|>user\n<v><image></v>What?<|im_end|>\n<|im_start|>assistant\n"),
        (INLINE, "a <image> b", 1,
         "<|im_start|>user\na <v><image></v> b<|im_end|>\n<|im_start|>assistant\n"),
        (INLINE, "What? <image>", 1,
         "<|im_start|>user\nWhat? <v><image></v><|im_end|>\n<|im_start|>assistant\n"),
        (None, "What?", 1, "<image>\nWhat?"),
        (None, "a <image> b", 1, "a <image> b"),
        # finished ones
        (FRONT, "USER: <image>\nWhat? ASSISTANT:", 1, "USER: <image>\nWhat? ASSISTANT:"),
        (FRONT, "[INST] <image>\nWhat? [/INST]", 1, "[INST] <image>\nWhat? [/INST]"),
        # without an image token nothing is finished: somebody asks about these words
        (FRONT, "Is USER: x ASSISTANT:", 1, "USER: <image>\nIs USER: x ASSISTANT: ASSISTANT:"),
    ],
)  # fmt: skip
def test_places(template: str | None, text: str, images: int, expected: str) -> None:
    assert user_prompt(processor(template), text, images) == expected


@pytest.mark.parametrize("text, images, raw", [
    ("What colour is it? <image> <image>", 1, False),
    ("<image> or what?", 2, False),
    ("What?", 1, True),
    ("USER: <image><image> ASSISTANT:", 1, False),
])  # fmt: skip
def test_another_number_of_tokens_is_an_error_that_says_what_to_do(text, images, raw) -> None:
    shown = text.count("<image>")
    said = rf"^prompt: {shown} image tokens, {images} images; .*write it once for each.*< image >$"
    with pytest.raises(VTCError, match=said):
        user_prompt(processor(FRONT), text, images, raw)


def test_raw_is_taken_as_it_is() -> None:
    for text in ("<image> what", "a\n<image>"):
        assert user_prompt(processor(FRONT), text, 1, raw=True) == text


def test_the_token_that_gemma_is_written_with_counts() -> None:
    gemma = processor(INLINE, boi_token="<start_of_image>")
    gemma.image_token = "<image_soft_token>"
    text = "What does <start_of_image> mean, or <image_soft_token>?"
    with pytest.raises(VTCError, match="prompt: 2 image tokens, 1 images; <start_of_image> says"):
        user_prompt(gemma, text, 1)


def test_notes() -> None:
    ours = processor(FRONT)
    assert notes(ours, "What does < image > mean?") == notes(ours, "<image>\nWhat is <b>?") == []
    assert notes(ours, "a\n<image>\nb") == notes(ours, "<image> What?") == []
    assert notes(ours, "<unk>, <s>?") == [], "words, and no token of this model"
    (one,) = notes(ours, "What does <image> mean in HTML?")
    assert one.startswith("prompt: <image> within a line is taken for the place of an image")
    (one,) = notes(ours, "What does </s> do?")
    assert one.startswith("prompt: </s> is a special token of this model") and "< /s >" in one
    assert notes(ours, "USER: is <image> it? </s> ASSISTANT:") == [], "a finished prompt"


def test_pieces_without_any_text_between() -> None:
    assert placed(processor(INLINE), ["", "", "b"]).count("<v><image></v>") == 2
    assert placed(processor(FRONT), ["a", ""]) == "USER: a<image> ASSISTANT:"
