"""What a second runtime uses knows nothing of the first."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import vtc.plugins.model


def test_the_model_room_needs_neither_transformers_nor_hooks() -> None:
    names = [
        f"vtc.plugins.model.{each.name}"
        for each in pkgutil.iter_modules(vtc.plugins.model.__path__)
    ]
    assert len(names) >= 10
    code = (
        f"import sys, {', '.join(names)}\n"
        "print([m for m in sys.modules if m.split('.')[0] == 'transformers' or 'plugins.hf' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
