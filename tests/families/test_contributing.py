"""The family that CONTRIBUTING.md shows is the one in the code."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from textwrap import dedent

from vtc.plugins.hf.adapters.internvl import InternVL


def test_the_example_is_the_adapter() -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (shown,) = [dedent(block) for block in blocks if "class InternVL(" in block]
    real = ast.parse(dedent(inspect.getsource(InternVL))).body[0]
    assert isinstance(real, ast.ClassDef)
    del real.body[0]  # its docstring
    assert ast.dump(ast.parse(shown).body[0]) == ast.dump(real)
    assert len(shown.splitlines()) <= 80
