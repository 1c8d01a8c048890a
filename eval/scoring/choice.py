"""The option that an answer to a multiple-choice question means."""

from __future__ import annotations

import re
from collections.abc import Mapping


def option_letter(prediction: str, options: Mapping[str, str]) -> str | None:
    """Letter of the chosen option, None when the answer does not settle on one.

    Tried in this order: the answer is a letter (`b`, `(B)`), is the text of one option, starts with
    a letter (`B. a cat`, `B) ...`), names one (`the answer is b`), has exactly one letter that stands
    alone, or holds the text of exactly one option as whole words. Text inside the longer text of
    another option ("Virginia" in "West Virginia") does not count. An `A` in front of a word in lower
    case, and an `a` in front of any word, is taken for the article.

    Args:
        options: letter (capital) -> text of the option; a text may be empty when it is not known.
    """
    text = prediction.strip()
    letters = "".join(options)
    bare = text.strip(" .,:;!?()[]'\"*").upper()
    if bare in options:
        return bare
    texts = {letter: option.strip().lower() for letter, option in options.items() if option}
    said = text.lower()
    same = [letter for letter, option in texts.items() if option in (said, said.rstrip("."))]
    if len(same) == 1:
        return same[0]
    start = re.match(rf"\(?([{letters}])[.):,]", text)
    named = re.findall(
        r"\b(?i:answer|option|choice)\b(?: is| would be)?[:\s]*[(\"']?(?![ai]\s+\w)"
        rf"([{letters}{letters.lower()}])(?![\w-]|'\w)",
        text,
    )
    found = start.group(1) if start else named[-1].upper() if named else ""
    if found:
        return found
    alone = set(re.findall(rf"(?<![\w'])([{letters}])(?![\w'])", text))
    if re.search(r"(?<![\w'])A (?!or\b|and\b)[a-z]", text):
        alone.discard("A")
    if len(alone) == 1:
        return alone.pop()
    held = _held(said, texts)
    return held.pop() if len(held) == 1 and not alone else None


def _held(said: str, texts: Mapping[str, str]) -> set[str]:
    """Letters of the texts that occur in `said` outside the occurrence of a longer one."""
    spans = [
        (letter, *found.span())
        for letter, option in texts.items()
        # ASCII: languages without spaces between words have no other bounds; 5 is not in 3.5
        for found in re.finditer(rf"(?a)(?<!\w)(?<!\d[.,]){re.escape(option)}(?!\w|[.,]\d)", said)
    ]
    return {
        letter
        for letter, first, last in spans
        if not any(a <= first and last <= b and b - a > last - first for _, a, b in spans)
    }
