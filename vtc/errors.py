"""The one exception that `vtc` raises for bad input."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class VTCError(ValueError):
    """Bad input to `vtc`: names the argument, the value given and what is allowed.

    It is always raised before a model is changed, or after the model has been put back.
    """


#: what other projects call the two budgets, without spaces, dashes and underscores
_SHARES = (
    "keep keepratio keeprate keptratio ratio rate share fraction percent tokenratio retain retainratio "
    "retentionratio retentionrate"
)
_COUNTS = (
    "numtokens ntokens maxtokens keeptokens tokenbudget tokencount count number budget topk k "
    "numvisualtokens visualtokens visualtokennum dominant dominantnum length"
)
_DROPPED = (
    "pruneratio prunerate pruningratio pruningrate dropratio droprate prune drop reduction "
    "reductionratio compression compressionratio compressionrate sparsity r"
)
_WORDS = {
    **{word: ("retention", "") for word in _SHARES.split()},
    **{word: ("tokens", "") for word in _COUNTS.split()},
    **{word: ("retention", ", the share that stays") for word in _DROPPED.split()},
}


def meant(given: str) -> tuple[str, str]:
    """The name of a budget that other projects call `given`, and what to add to it; else two ""."""
    return _WORDS.get(re.sub(r"[\W_]", "", str(given)).lower(), ("", ""))


def nearest(given: str, allowed: Iterable[str], mark: str = "") -> str:
    """`"; did you mean 'x'?"` for the allowed name that `given` means, or an empty string.

    That is the name closest in spelling, or the one for what other projects call so.

    Args:
        mark: what stands in front of all names, such as `"--"`.
    """
    names = list(allowed)
    word, more = meant(given)
    if word and mark + word in names:
        return f"; did you mean {mark + word!r}{more}?"
    match = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
