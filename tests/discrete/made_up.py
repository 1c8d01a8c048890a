"""Golden cases made up in a test, in the format of `tests/golden/discrete`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.golden import RUNNERS, Case, family

SHIPPED = Path(__file__).parents[1] / "golden" / "discrete"
Tensors = dict[str, Tensor]
Made = tuple[dict[str, Any], Tensors]  # arguments; tensors by their names in the file


def check(folder: Path, name: str, args: dict[str, Any], tensors: Tensors) -> None:
    """Write a case and run it as `python -m tests.golden` does."""
    shapes = {key: [str(x.dtype).removeprefix("torch."), [*x.shape]] for key, x in tensors.items()}
    info = {"args": args, "tensors": shapes, "rtol": 1e-4, "atol": 2e-5}
    (folder / f"{name}.json").write_text(json.dumps(info))
    stored = {key: x.detach().contiguous().clone() for key, x in tensors.items()}
    save_file(stored, folder / f"{name}.safetensors")
    RUNNERS[family(name)](Case(folder / f"{name}.json"))


def shipped(name: str) -> Made:
    """Arguments and tensors of a case of the repository."""
    info = json.loads((SHIPPED / f"{name}.json").read_text())
    return info["args"], load_file(SHIPPED / f"{name}.safetensors")


def randn(*shape: int) -> Tensor:
    """Normal draws."""
    return torch.randn(shape)
