"""The family that CONTRIBUTING.md shows is the one in the code."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from vtc.plugins.hf.adapters.internvl import InternVL
from vtc.plugins.model.families import internvl


@pytest.mark.parametrize("part", [InternVL, internvl])
def test_the_example_is_the_code(part: Any) -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    start = f"{'class' if inspect.isclass(part) else 'def'} {part.__name__}("
    (shown,) = [dedent(block) for block in blocks if start in block]
    real: Any = ast.parse(dedent(inspect.getsource(part))).body[0]
    del real.body[0]  # its docstring
    assert ast.dump(ast.parse(shown).body[0]) == ast.dump(real)
    assert len(shown.splitlines()) <= 80
