"""Plug-in for Hugging Face transformers models: boundary compaction.

The images are encoded first, the method shrinks them, the surplus placeholders leave the prompt, and
transformers runs as if the prompt had always been short. See `apply.py` for what is settled before a
model is touched, `stages/boundary/intercept.py` for the two ways in, `encode.py` beside it for the way
from pixels to compressed tokens, `shorten.py` for the way from a long call to a short one, `checks`
for whether all that is right. What needs no transformers is in `vtc.plugins.model`.
"""

from __future__ import annotations

import re
import warnings

import transformers

#: first and last minor version of transformers that the tests ran with
TESTED = ("5.18", "5.24")


def version_note(version: str) -> str | None:
    """What to say about a version of transformers, None for a tested one."""

    def minor(text: str) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", text)[:2])

    if minor(TESTED[0]) <= minor(version) <= minor(TESTED[1]):
        return None
    return (
        f"transformers {version} is installed, vtc was tested with {TESTED[0]} to {TESTED[1]}; a tiny "
        "model of each family is checked before the first is compressed, and `vtc doctor` checks more"
    )


_NOTE = version_note(transformers.__version__)
if _NOTE:
    warnings.warn(_NOTE, stacklevel=2)
