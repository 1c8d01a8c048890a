"""From the user's words to a prompt: where the images go, and what else is no word to a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vtc.errors import VTCError

#: for `--help` of the commands that take a prompt
RULES = """\
The prompt is the user's words: they go into the model's chat template, behind the image. The image
token of the model's processor (such as <image>), written once for each image, says where the images go
instead, also within a sentence, which a note tells; in any other number it is an error, since no
tokenizer reads it as a word: a question about the word must spell it otherwise, such as < image >. A
prompt with image tokens that ends in the assistant's marker (USER: <image> ... ASSISTANT:), or any with
--raw, is a finished one and used as it is.
"""


def prompt(processor: Any, text: str, images: int) -> str:
    """`text` as the user's turn in the chat template, behind `images` images; without a chat
    template the image tokens stand in front."""
    if getattr(processor, "chat_template", None):
        image: dict[str, str] = {"type": "image"}
        return _turn(processor, [image] * images + [{"type": "text", "text": text}])
    return f"{image_tokens(processor)[0]}\n" * images + text


def placed(processor: Any, pieces: Sequence[str]) -> str:
    """The user's turn with an image between every two pieces of text."""
    token, images = image_tokens(processor)[0], len(pieces) - 1
    if not any(piece.strip() for piece in pieces[:-1]):
        return prompt(processor, pieces[-1].lstrip("\n"), images)
    if not getattr(processor, "chat_template", None):
        return token.join(pieces)
    content: list[dict[str, str]] = []
    for piece in pieces:
        content += [{"type": "text", "text": piece}] if piece else []
        content.append({"type": "image"})
    turn = _turn(processor, content[:-1])
    if turn.split() == prompt(processor, "".join(pieces), images).split():
        # LLaVA's template puts all images in front; the text itself may hold their tokens
        turn = _turn(processor, [{"type": "text", "text": token.join(pieces)}])
    return turn


def _turn(processor: Any, content: list[dict[str, str]]) -> str:
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


def image_tokens(processor: Any) -> tuple[str, ...]:
    """Whatever in a text the processor makes an image of."""
    start = getattr(processor, "boi_token", None)  # what Gemma 3 is written with
    return (
        getattr(processor, "image_token", "<image>"),
        *([start] if isinstance(start, str) else []),
    )


def user_prompt(processor: Any, text: str, images: int, raw: bool = False) -> str:
    """The prompt that `--prompt` asks for, see `RULES`.

    Raises:
        VTCError: `text` holds image tokens, but not one for each image, or a raw one holds none.
    """
    from vtc.plugins.model.chat import is_chat

    places = _places(processor)
    shown = len(places.findall(text))
    if shown != images and (shown or raw):
        token = image_tokens(processor)[-1]
        never = "" if raw else ", or never to have them in front"
        raise VTCError(
            f"prompt: {shown} image tokens, {images} images; {token} says where an image goes: write "
            f"it once for each{never}; the word itself must be spelt otherwise, such as {_spelt(token)}"
        )
    if raw or (shown and is_chat(text)):
        return text
    return placed(processor, places.split(text)) if shown else prompt(processor, text, images)


def notes(processor: Any, text: str) -> list[str]:
    """What in the user's words may not be read as it was meant."""
    from vtc.plugins.model.chat import is_chat, special_texts

    found = []
    places = _places(processor)
    shown = places.findall(text)
    if shown and is_chat(text):
        return []
    if any(_within(places, line) for line in text.split("\n")):
        found.append(
            f"prompt: {shown[0]} within a line is taken for the place of an image; as a word it must "
            f"be spelt otherwise, such as {_spelt(shown[0])}"
        )
    tokenizer = getattr(processor, "tokenizer", processor)
    for token in sorted(special_texts(tokenizer) - set(image_tokens(processor))):
        if token in text:
            found.append(
                f"prompt: {token} is a special token of this model, which it does not read as a word; "
                f"one must be spelt otherwise, such as {_spelt(token)}"
            )
    return found


def _places(processor: Any) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, image_tokens(processor))))


def _within(places: re.Pattern[str], line: str) -> bool:
    """Whether words stand on both sides of an image."""
    pieces = places.split(line)
    return any(
        "".join(pieces[:cut]).strip() and "".join(pieces[cut:]).strip()
        for cut in range(1, len(pieces))
    )


def _spelt(token: str) -> str:
    return f"{token[:1]} {token[1:-1]} {token[-1:]}"
