"""An engine on two processes says what transformers says, however its work is shared."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vllm import checkpoints
from tests.vllm.engine.requests import Request, answer
from tests.vllm.engine.test_equal import differences

READ = ("uniform", "globalcom2", "token_correlation", "visionzip", "prumerge", "hiprune")
WAYS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    # heads of the tower are sharded but for the layer that vLLM leaves out
    "tensor": ("llava_next", READ, {"tensor_parallel_size": 2}),
    "pipeline": ("llava_next", READ, {"pipeline_parallel_size": 2}),
    "positions": ("qwen2_5_vl", ("uniform", "globalcom2"), {"pipeline_parallel_size": 2}),
    # a rank encodes images of its own: methods that read nothing of the tower
    "encoder": (
        "qwen2_5_vl",
        ("uniform", "divprune"),
        {"tensor_parallel_size": 2, "mm_encoder_tp_mode": "data"},
    ),
    "ray": (
        "llava_next",
        READ,
        {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_say_what_one_says(
    way: str,
    folder: Callable[[str], Path],
    pictures: dict[str, Path],
    engine: Callable[..., Any],
) -> None:
    if way == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    family, methods, settings = WAYS[way]
    path = folder(family)
    made = checkpoints.load(family, path)
    requests = [Request(("wide", "tall"), name, 0.375) for name in methods]
    job = [request.job(made, pictures) for request in requests]
    found = engine(path, [job], engine=settings, profile="pipeline_parallel_size" in settings)
    wrong = []
    for request, got in zip(requests, found["rounds"][0], strict=True):
        wrong += differences(0, request, got, answer(made, pictures, request))
    assert not wrong, "\n".join(wrong)
    assert "at even distances" not in found["log"]
