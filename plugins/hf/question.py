"""Find what the user asks about an image in a chat prompt."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import Tensor

from vtc.errors import VTCError

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch

# Turn markers of the chat formats in use: LLaVA/Vicuna, Llama-2/Mistral, ChatML, Phi, Gemma, Llama-3,
# and the "Human/Assistant" forms. The last are plain words that a question may quote, so they count at
# the start of a line or behind a special token alone, and "Assistant:" at the end of the prompt too.
_START = r"(?:^|>)[ \t]*"
_USER = re.compile(
    r"\bUSER:|\[INST\]|<\|im_start\|>user|<\|user\|>|<start_of_turn>user"
    r"|<\|start_header_id\|>user<\|end_header_id\|>|### ?(?:Human|User):?"
    rf"|{_START}(?:Human|User):",
    re.MULTILINE,
)
_ASSISTANT = re.compile(
    r"\bASSISTANT:|\[/INST\]|<\|im_start\|>assistant|<\|assistant\|>|<start_of_turn>model"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>|### ?Assistant:?"
    rf"|{_START}Assistant:|\bAssistant:\s*\Z",
    re.MULTILINE,
)
_SYSTEM = re.compile(r"<<SYS>>.*?<</SYS>>", re.DOTALL)
# special tokens: most in angle brackets; Qwen3-VL's time stamps; Pixtral's rows of an image
_TAG = re.compile(r"<[^<>\s]{1,40}>|<\d+(?:\.\d+)? seconds>|\[IMG(?:_BREAK|_END)?\]")


def asked(patch: Patch, ids: Tensor | None) -> str:
    """The text that guides a method: its own `question`, or what the prompt asks.

    Args:
        patch: of the model.
        ids: token ids of the prompt `[L]`, without padding; None when the caller gave embeddings.
    """
    fixed = getattr(patch.method, "question", None)
    if fixed is not None:
        return fixed
    if ids is None:
        raise VTCError("inputs_embeds: a text-guided method cannot read them; pass question=...")
    read = first_line if getattr(patch.method, "text_source", "") == "official" else last_question
    return read(patch.tokenizer.decode(ids, skip_special_tokens=False))


def last_question(prompt: str) -> str:
    """The text of the last user turn, without image tags and other special tokens.

    A prompt without turn markers is taken whole.
    """
    turns = _USER.split(_SYSTEM.sub(" ", prompt))
    turn = _ASSISTANT.split(turns[-1])[0]
    return " ".join(_TAG.sub(" ", turn).split())


def first_line(prompt: str) -> str:
    """The first line of the prompt, image tags removed.

    This is what the official code of Recoverable Compression hands to the text encoder: in LLaVA's
    template the system prompt and "USER:", but not the question.
    """
    return " ".join(_TAG.sub(" ", prompt.split("\n")[0]).split())
