"""The code of docs/discrete.md runs, block after block."""

import re
from pathlib import Path
from typing import Any

import pytest

from vtc.discrete.quantizers import QUANTIZERS
from vtc.discrete.samplers import SAMPLERS


def test_the_examples_run() -> None:
    pytest.importorskip("transformers")
    text = (Path(__file__).parents[2] / "docs" / "discrete.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, Any] = {}
    try:
        for block in blocks:
            exec(compile(block, "docs/discrete.md", "exec"), names)
    finally:
        for table, name in ((QUANTIZERS, "ternary"), (SAMPLERS, "likeliest"), (SAMPLERS, "sketch")):
            table.pop(name, None)
    assert names["larger"].shape == (4, 3, 16, 16) and names["same"] == names["own"]
    assert names["visual"].shape == (4, 16, 32) and names["kept"].features.shape == (4, 32)
