"""Published methods that are not here, and what stands in the way: asking for one says so."""

from __future__ import annotations

from typing import Any

from vtc.errors import VTCError

_INSIDE = "works inside the language model, which this version does not cut"

#: name in small letters and digits -> as its authors write it, arXiv number, what stands in the way
KNOWN: dict[str, tuple[str, str, str]] = {
    "aim": ("AIM", "2412.03248", _INSIDE),
    "dart": ("DART", "2502.11494", _INSIDE),
    "docprune": ("DocPrune", "2604.22281", _INSIDE),
    "fastv": ("FastV", "2403.06764", _INSIDE),
    "feather": ("FEATHER", "2412.13180", _INSIDE),
    "fitprune": ("FitPrune", "2409.10197", _INSIDE),
    "ivcprune": ("IVC-Prune", "2602.03060", _INSIDE),
    "pact": ("PACT", "2504.08966", _INSIDE),
    "pdrop": ("PyramidDrop", "2410.17247", _INSIDE),
    "pyramiddrop": ("PyramidDrop", "2410.17247", _INSIDE),
    "sparsevlm": ("SparseVLM", "2410.04417", _INSIDE),
    "sparsevlms": ("SparseVLM", "2410.04417", _INSIDE),
    "st3": ("ST3", "2412.20105", _INSIDE),
    "topv": ("TopV", "2503.18278", _INSIDE),
    "v2drop": ("V2Drop", "2509.01552", _INSIDE),
    "vtw": ("VTW", "2405.05803", _INSIDE),
}


def unknown(error: VTCError, name: Any) -> VTCError:
    """The error for a name that is not registered, with what is known of it in place of a guess."""
    key = "".join(filter(str.isalnum, name)).lower() if isinstance(name, str) else ""
    if key not in KNOWN:
        return error
    title, paper, why = KNOWN[key]
    usual = str(error).partition("; did you mean")[0]
    return VTCError(f"{usual}. vtc knows {title} (arXiv {paper}), but does not have it: it {why}")
