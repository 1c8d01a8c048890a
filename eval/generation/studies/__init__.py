"""The committed results, one study a file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vtc.errors import VTCError, nearest

if TYPE_CHECKING:
    from vtc.eval.generation.studies.base import Study

#: In the order of the page.
NAMES = (
    "presets",
    "quantizers",
    "resolutions",
    "decomposition",
    "causal",
    "cells",
    "tuning",
    "rollout",
)


def load_study(name: str) -> Study:
    """The study `name`.

    Raises:
        VTCError: there is none of that name.
    """
    if name not in NAMES:
        raise VTCError(
            f"study: got {name!r}, available are {', '.join(NAMES)}{nearest(name, NAMES)}"
        )
    return importlib.import_module(f"{__name__}.{name}").STUDY
