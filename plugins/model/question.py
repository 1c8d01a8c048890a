"""Find what the user asks about an image in a chat prompt."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

from torch import Tensor

from vtc.errors import VTCError
from vtc.methods.asks_text import AsksText
from vtc.methods.base import Method
from vtc.plugins.model import chat


class Guidance(NamedTuple):
    """How a method wants to be told what is asked.

    Attributes:
        question: the text itself, None for what the prompt asks.
        official: whether that is the prompt's first line, as in an official code.
        text_encoder: where the encoder that reads it comes from, None for the model's own.
    """

    question: str | None = None
    official: bool = False
    text_encoder: Any = None


def guidance(method: Method) -> Guidance:
    """The guidance of a method; of one that asks nothing it is empty."""
    if not isinstance(method, AsksText):
        return Guidance()
    return Guidance(method.question, method.text_source == "official", method.text_encoder)


def with_question(method: Method, text: str) -> Method:
    """A method that asks is asked `text`, unless it has a question of its own."""
    if isinstance(method, AsksText) and method.question is None:
        return dataclasses.replace(method, question=text)
    return method


def worded(method: Method, text: str) -> str:
    """What of a question a method wants tokenized, see `AsksText.reworded`."""
    return method.reworded(text) if isinstance(method, AsksText) else text


def asked(method: Method, tokenizer: Any, ids: Tensor | None) -> str:
    """The text that guides a method: its own `question`, or what the prompt asks.

    Special tokens are told from the user's words by their ids where the tokenizer lists them.

    Args:
        method: it may have a text of its own.
        tokenizer: reads the prompt.
        ids: token ids of the prompt `[L]`, without padding; None when the caller gave embeddings.
    """
    guide = guidance(method)
    if guide.question is not None:
        return guide.question
    if ids is None:
        raise VTCError("inputs_embeds: a text-guided method cannot read them; pass question=...")
    special = chat.special_ids(tokenizer)
    exact = special is not None
    if special is not None:
        text = chat.mark_ids(tokenizer, ids, special)
    else:
        text = chat.mark_names(tokenizer.decode(ids, skip_special_tokens=False))
    return _first_line(text, exact) if guide.official else _last_question(text, exact)


def last_question(prompt: str) -> str:
    """The last turn of the user, word for word with single blanks.

    A prompt without turns is taken whole. Formats: LLaVA/Vicuna, Llama-2/Mistral, ChatML, Phi, Gemma,
    Llama-3 and 4, Granite, and those with "Human:" or "User:" and "Assistant:". Text alone cannot tell

    * whether `<image>` and the like are images: they are taken for such in rows, at the edges of the
      turn and of its lines, and for words in mid-sentence;
    * a second turn, in a format whose markers are plain text and whose answers end in no token, from a
      question that holds a marker of the assistant and one of the user behind it: that is one question
      where the marker is quoted, or where no sentence ends in front of either and the text goes on in
      small letters, and two turns otherwise;
    * where a question ends that has its answer behind it (training): at the first marker.
    """
    return _last_question(chat.mark_names(prompt), exact=False)


def first_line(prompt: str) -> str:
    """The first line of the prompt, image tags removed.

    This is what the official code of Recoverable Compression hands to the text encoder: in LLaVA's
    template the system prompt and "USER:", but not the question.
    """
    return _first_line(chat.mark_names(prompt), exact=False)


def _last_question(text: str, exact: bool) -> str:
    turn = chat.last_turn(text)
    return chat.words(text, exact, frame=True) if turn is None else chat.words(turn, exact)


def _first_line(text: str, exact: bool) -> str:
    line = text.split("\n")[0]
    if not exact:  # images stand behind the role in a prompt of one line
        line = re.sub(rf"{chat.ROLE}\s*(?:{chat.MARK}\s*)+", r"\1 ", line)
    return chat.words(line, exact, frame=True)
