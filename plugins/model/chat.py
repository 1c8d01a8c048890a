"""Where the last turn of the user stands in a chat prompt, by the place of its markers.

A prompt is text in which special tokens are marked: by their ids where a tokenizer tells which they
are, by their names otherwise. Turn markers that are special tokens are found as such. Those that are
plain text (Vicuna's "USER:", "[INST]", "User:") may be words of a question as well, so they count by
where they stand: the marker at the end of the prompt closes the last turn, the first marker of the user
opens one, and another opens one behind the end of an answer alone, which is an end-of-turn token, or, in
templates that write none, a marker of the assistant.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

#: around a special token; no text holds these two characters, which Unicode keeps free
LEFT, RIGHT = "\ufdd0", "\ufdd1"
MARK = f"{LEFT}[^{LEFT}{RIGHT}]*{RIGHT}"

_ENDS = (
    *("</s>", "<eos>", "<|im_end|>", "<|end|>", "<|eot|>", "<|eot_id|>", "<|end_of_text|>"),
    *("<|endoftext|>", "<end_of_turn>", "<end_of_utterance>"),
)
#: tokens that chat templates put around turns, never into one
FRAME = (
    rf"(?:{'|'.join(map(re.escape, _ENDS))}|<s>|<bos>|<pad>|\[/?INST\]|<start_of_turn>"
    r"|<\|(?:im_start|user|assistant|system|eom_id|begin_of_text|(?:start|end)_header_id"
    r"|header_(?:start|end)|(?:start|end)_of_role)\|>)"
)
#: names of the tokens that stand for images, or around and between them, in the families' prompts
PICTURE = (
    r"(?:<(?:image|video|/?img|IMG_CONTEXT|image_soft_token|start_of_image|end_of_image"
    r"|image_placeholder|fake_token_around_image|global[-_]img|row_\d+_col_\d+|crop_img_row\d+_col\d+)>"
    r"|<\|(?:image|video|image_\d+|vision_start|vision_end|vision_pad|image_pad|video_pad)\|>"
    r"|\[IMG(?:_BREAK|_END)?\]|<\d+(?:\.\d+)? seconds>)"
)
_KNOWN = re.compile(rf"{FRAME}|{PICTURE}")


def mark_names(text: str) -> str:
    """Text with the special tokens marked that are known by name."""
    pixtral = "[IMG_END]" in text  # which ends every image; without it "[IMG]" is a word

    def mark(tag: re.Match[str]) -> str:
        word = tag[0].startswith("[") and not (pixtral and tag[0].startswith("[IMG"))
        return tag[0] if word else f"{LEFT}{tag[0]}{RIGHT}"

    return _KNOWN.sub(mark, _without_marks(text))


def special_ids(tokenizer: Any) -> set[int] | None:
    """Ids of the tokens that are no text, None where a tokenizer does not tell.

    The token for unknown words is one of the user's words. Those of images are not always called
    special.
    """
    found = getattr(tokenizer, "all_special_ids", None)
    if found is None:
        return None
    special = set(found)
    for number, token in (getattr(tokenizer, "added_tokens_decoder", {}) or {}).items():
        if getattr(token, "special", False) or re.fullmatch(PICTURE, str(token)):
            special.add(number)
    return special - {getattr(tokenizer, "unk_token_id", None)}


def special_texts(tokenizer: Any) -> set[str]:
    """How the tokens of `special_ids` are written."""
    added = getattr(tokenizer, "added_tokens_decoder", {}) or {}
    special = special_ids(tokenizer) or set()
    return {str(token) for number, token in added.items() if number in special}


def mark_ids(tokenizer: Any, ids: Tensor, special: set[int]) -> str:
    """The text of ids `[L]`, with the special tokens marked."""
    parts, plain = [], []
    for number in [*ids.tolist(), None]:  # None ends the last piece of text
        if number is not None and number not in special:
            plain.append(number)
            continue
        if plain:
            text = tokenizer.decode(
                plain, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            parts.append(_without_marks(text))
            plain = []
        if number is not None:
            parts.append(f"{LEFT}{tokenizer.convert_ids_to_tokens([number])[0]}{RIGHT}")
    return "".join(parts)


def _without_marks(text: str) -> str:
    return text.replace(LEFT, "").replace(RIGHT, "")


# -- templates ---------------------------------------------------------------------------------


class Template(NamedTuple):
    """How turns of a chat format begin and end, as regular expressions.

    Attributes:
        user, assistant: the markers.
        before: what stands in front of one that is plain text; the prompt's last needs none of it.
        end: the token behind a turn.
        closed: whether it is behind the user's turns as well.
        tokens: whether the markers are special tokens.
    """

    user: str
    assistant: str
    before: str
    end: str
    closed: bool
    tokens: bool = False

    def find(self, role: str, text: str) -> list[re.Match[str]]:
        """The markers of a role."""
        return list(re.finditer(self.before + role, text, re.MULTILINE))

    def ended(self, text: str, place: int) -> bool:
        """Whether a turn is over in front of a place, by its token."""
        front = text[max(0, place - 200) : place]
        return re.search(rf"{self.end}(?:\s|{MARK})*\Z", front) is not None


def _special(name: str) -> str:
    return f"{LEFT}{re.escape(name)}{RIGHT}"


def _of_tokens(tag: Callable[[str], str]) -> list[Template]:
    """Formats whose markers are, or hold, special tokens; `tag` makes one of its name."""
    formats = [
        ("<|im_start|>", "user", "assistant", "", "<|im_end|>"),
        ("<start_of_turn>", "user", "model", "", "<end_of_turn>"),
        ("<|start_header_id|>", "user", "assistant", "<|end_header_id|>", "<|eot_id|>"),
        ("<|header_start|>", "user", "assistant", "<|header_end|>", "<|eot|>"),
        ("<|start_of_role|>", "user", "assistant", "<|end_of_role|>", "<|end_of_text|>"),
    ]
    found = []
    for left, user, assistant, right, end in formats:
        behind = tag(right) if right else ""
        opens, answers = (f"{tag(left)}{role}{behind}" for role in (user, assistant))
        found.append(Template(opens, answers, "", tag(end), closed=True, tokens=True))
    pairs = [("<|user|>", "<|assistant|>", "<|end|>"), ("[INST]", "[/INST]", "</s>")]
    return found + [
        Template(tag(user), tag(assistant), "", tag(end), closed=user == "<|user|>", tokens=True)
        for user, assistant, end in pairs
    ]


_END = f"(?:{'|'.join(map(_special, _ENDS))})"
_BEHIND_SPACE = rf"(?:(?<!\S)|(?<={RIGHT}))"
_BEHIND_LINE = rf"(?:^|(?<={RIGHT}))[ \t]*"
_NOT_QUOTED = r"(?<!\s[\"'`(])"
_TEMPLATES = [
    *_of_tokens(_special),
    # written out by tokenizers that do not know them
    *_of_tokens(re.escape)[:-1],
    Template(r"\[INST\]", r"\[/INST\]", _NOT_QUOTED, _END, closed=False),
    Template(r"\bUSER:", r"\bASSISTANT:", _BEHIND_SPACE, _END, closed=False),
    Template(r"### ?(?:Human|User):?", r"### ?Assistant:?", "", _END, closed=False),
    Template(r"\b(?:Human|User):", r"\bAssistant:", _BEHIND_LINE, _END, closed=True),
]
#: Vicuna's markers from a tokenizer that knows no capitals
_UNCASED = Template(r"\buser ?:", r"\bassistant ?:", _BEHIND_SPACE, _END, closed=False)

#: what a prompt may have behind the assistant's marker
_TAIL = rf"(?:\s|{LEFT}?</?think>{RIGHT}?)*\Z"
_SYSTEM = re.compile(r"\A\s*<<SYS>>\s*\n.*?\n\s*<</SYS>>\s*", re.DOTALL)


def last_turn(text: str) -> str | None:
    """The last turn of the user in a marked prompt, None where there are no turns."""
    turn = _awaiting(text)
    if turn is None:
        turn = _answered(text)
    return None if turn is None else _SYSTEM.sub("", turn)


def is_chat(text: str) -> bool:
    """Whether a text is a whole chat that ends where the assistant is to speak."""
    return _awaiting(mark_names(text)) is not None


def _awaiting(text: str) -> str | None:
    """The last turn of a prompt that ends in the assistant's marker."""
    for template in _formats(text):
        end = re.search(template.assistant + _TAIL, text)
        opening = None if end is None else _opening(text, template, end.start())
        if end is not None and opening is not None:
            return _closed(template, text[opening : end.start()])
    return None


def _answered(text: str) -> str | None:
    """The last turn of a prompt with an answer behind it, or without the assistant's marker."""
    for template in _formats(text):
        users = template.find(template.user, text)
        if users and _may_start(text, template, users[0]):
            turn = text[_opening(text, template, len(text)) :]
            # a token with a word behind it is none of the template's
            ends = list(re.finditer(rf"{template.end}(?=\s*(?:{LEFT}|\Z))", turn))
            stops = [match.start() for match in ends + template.find(template.assistant, turn)]
            return _closed(template, turn[: min(stops, default=len(turn))])
    return None


def _closed(template: Template, turn: str) -> str:
    return re.sub(rf"\s*{template.end}\s*\Z", "", turn) if template.closed else turn


def _formats(text: str) -> list[Template]:
    capitals = any(letter.isupper() for letter in re.sub(MARK, "", text))
    return [*_TEMPLATES, *([] if capitals else [_UNCASED])]


def _opening(text: str, template: Template, stop: int) -> int | None:
    """Where the last turn of the user begins in `text[:stop]`, behind its marker."""
    users = template.find(template.user, text[:stop])
    if not users:
        return None
    opening = users[0].end()
    by_token = any(template.ended(text, user.start()) for user in users[1:])
    answers = [match.start() for match in template.find(template.assistant, text[:stop])]
    for user in users[1:]:
        if by_token:
            opens = template.ended(text, user.start())
        else:
            answer = next((place for place in answers if place >= opening), stop)
            opens = (
                answer < user.start()
                and (
                    template.tokens
                    # "What does ASSISTANT: say after USER: there?" is one sentence, no turn of each
                    or _stops(text, answer)
                    or _stops(text, user.start())
                    or not text[user.end() :].lstrip()[:1].islower()
                )
            )
        if opens:
            opening = user.end()
    return opening


def _may_start(text: str, template: Template, user: re.Match[str]) -> bool:
    """At the start, in front of any image; or behind a system prompt, as such prompts look."""
    front = re.sub(f"{LEFT}{FRAME}{RIGHT}", "", text[: user.start()]).strip(" \t")
    if not front or template.tokens:
        return not front or template.ended(text, user.start())
    talk = template.find(template.assistant, text[user.end() :])
    return _stops(text, user.start()) and bool(talk or re.search(r"(?i)\bassistant\b", front))


def _stops(text: str, place: int) -> bool:
    """Whether a sentence or a line is over in front of a place."""
    front = re.sub(MARK, "", text[max(0, place - 200) : place]).rstrip(" \t")
    return not front or front[-1] in ".!?\n\u2026\u3002\uff01\uff1f"


# -- words ------------------------------------------------------------------------------------

#: what processors write in front of the frames of a video
_FRAMES = re.compile(rf"(?:<\d+(?:\.\d+)? seconds>|Frame\d+:|Frame from \d\d:\d\d:)\s*(?={LEFT})")
_INTRODUCTION = re.compile(
    r"You are provided the following series of [\w -]+ frames from a [\d:]+ \[H:MM:SS\] video\.\s*"
    r"(?=Frame from \d\d:\d\d:)"
)
_DOCOWL = re.compile(r"\A(?:\s*<(?:global_img|crop_img_row\d+_col\d+)>)+")
#: plain-text markers
ROLE = r"((?:USER|ASSISTANT|User|Human|Assistant):|\[/?INST\])"


def words(text: str, exact: bool, frame: bool = False) -> str:
    """What the user wrote in marked text, with single blanks between words.

    Args:
        text: a turn, or a whole prompt.
        exact: whether marks come from ids. Marks of names are doubtful: those of images go where they
            stand in rows, at the edges or at the end or the start of a line; one in mid-sentence
            stays a word.
        frame: whether tokens of the template may stand at the edges. Elsewhere they are words, since
            templates put none into a turn.
    """
    text = _DOCOWL.sub("", _FRAMES.sub("", _INTRODUCTION.sub("", text)))
    edge = rf"(?:\s|{LEFT}{FRAME if frame else '(?!)'}{RIGHT}|{_picture(exact)})*"
    text = re.sub(rf"\A{edge}|{edge}\Z", "", text)
    picture = _picture(exact)
    if exact:
        text = re.sub(picture, " ", text)
    else:
        row = rf"{picture}(?:\s*{picture})+"
        alone = rf"^[ \t]*{picture}|{picture}[ \t]*$"
        text = re.sub(rf"{row}|{alone}", " ", text, flags=re.MULTILINE)
    return " ".join(_without_marks(text).split())


def _picture(exact: bool) -> str:
    """A mark that is none of the template's; of those by name, one of an image."""
    return (
        rf"{LEFT}(?!{FRAME}{RIGHT})[^{LEFT}{RIGHT}]*{RIGHT}" if exact else f"{LEFT}{PICTURE}{RIGHT}"
    )
