"""The option that an answer to a multiple-choice question means."""

from __future__ import annotations

import re
from collections.abc import Mapping


def option_letter(prediction: str, options: Mapping[str, str]) -> str | None:
    """Letter of the chosen option, None when the answer does not settle on one.

    Tried in this order: the answer is a letter (`b`, `(B)`), starts with one (`B. a cat`, `B) ...`),
    names one (`the answer is B`), has exactly one letter that stands alone, or holds the text of
    exactly one option. An `A` in front of a word in lower case is taken for the article.

    Args:
        options: letter (capital) -> text of the option; a text may be empty when it is not known.
    """
    text = prediction.strip()
    letters = "".join(options)
    bare = text.strip(" .,:;!?()[]'\"*").upper()
    if bare in options:
        return bare
    start = re.match(rf"\(?([{letters}])[.):,]", text)
    named = re.findall(
        rf"\b(?i:answer|option|choice)\b(?: is| would be)?[:\s]*[(\"']?([{letters}])\b", text
    )
    found = start.group(1) if start else named[-1] if named else ""
    if found:
        return found
    alone = set(re.findall(rf"(?<![\w'])([{letters}])(?![\w'])", text))
    if re.search(r"(?<![\w'])A (?!or\b|and\b)[a-z]", text):
        alone.discard("A")
    if len(alone) == 1:
        return alone.pop()
    held = [
        letter for letter, option in options.items() if option and option.lower() in text.lower()
    ]
    return held[0] if len(held) == 1 and not alone else None
