"""Published methods that are not here, and what stands in the way: asking for one says so.

Other names of methods that are here lead to those.
"""

from __future__ import annotations

from typing import Any

from vtc.errors import VTCError

_MAPS = (
    "ranks tokens by whole attention maps, every token on every other in many layers, which vtc never "
    "makes: they cost what the method is there to save"
)
_NO_CODE = "works inside the language model and has no public code that it could be checked against"
_LATER = "works inside the language model and has not been written yet"

#: name in small letters and digits -> as its authors write it, arXiv number, what stands in the way
KNOWN: dict[str, tuple[str, str, str]] = {
    "aim": ("AIM", "2412.03248", _MAPS),
    "docprune": ("DocPrune", "2604.22281", _LATER),
    "fitprune": ("FitPrune", "2409.10197", _MAPS),
    "ivcprune": ("IVC-Prune", "2602.03060", _LATER),
    "pact": ("PACT", "2504.08966", _LATER),
    "st3": ("ST3", "2412.20105", _NO_CODE),
    "topv": ("TopV", "2503.18278", _NO_CODE),
}
#: name in small letters and digits -> the method of vtc
OTHER_NAMES = {
    "pdrop": "pyramiddrop",
    "sparsevlms": "sparsevlm",
    "visualtokenswithdrawal": "vtw",
}


def unknown(error: VTCError, name: Any) -> VTCError:
    """The error for a name that is not registered, with what is known of it in place of a guess."""
    key = "".join(filter(str.isalnum, name)).lower() if isinstance(name, str) else ""
    usual = str(error).partition("; did you mean")[0]
    if key in OTHER_NAMES:
        return VTCError(f"{usual}. vtc calls it {OTHER_NAMES[key]!r}")
    if key not in KNOWN:
        return error
    title, paper, why = KNOWN[key]
    return VTCError(f"{usual}. vtc knows {title} (arXiv {paper}), but does not have it: it {why}")
