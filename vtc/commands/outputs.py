"""Whether what a command writes can be written, asked before it begins to work."""

from __future__ import annotations

import os
from pathlib import Path

from vtc.errors import VTCError


def check_writable(name: str, path: str, folder: bool = False) -> None:
    """Refuse a path that cannot become a file, or a folder; nothing is made.

    Args:
        name: of the argument.
        path: may be in folders that are not there yet.
        folder: whether it is to be a folder.

    Raises:
        VTCError: it cannot; the reason is told.
    """
    place = Path(path)
    reason = ""
    if place.exists() and place.is_dir() != folder:
        reason = "it is a file" if folder else "it is a folder"
    else:
        there = place
        while not there.exists() and there != there.parent:
            there = there.parent
        if there != place and not there.is_dir():
            reason = f"{str(there)!r} is a file"
        elif not os.access(there, os.W_OK):
            reason = f"{str(there)!r} is read-only"
    if reason:
        raise VTCError(f"{name}: cannot write {path!r}: {reason}")
