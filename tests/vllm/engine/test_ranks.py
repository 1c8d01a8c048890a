"""An engine on two processes says what transformers says, however its work is shared."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vtc
from tests.vllm import checkpoints
from tests.vllm.engine.conftest import ROOT
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


#: workers of Ray inherit it; on a busy machine Ray waits too short a time for itself to start, and ends
#: workers for the memory that others use
RAY = {
    "RAY_memory_monitor_refresh_ms": "0",
    "TEST_RAY_DEVICE": "GPU",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "200",
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
    more: dict[str, Any] = {"env": RAY, "ray": 2} if way == "ray" else {}
    found = engine(
        path, [job], engine=settings, profile="pipeline_parallel_size" in settings, **more
    )
    wrong = []
    for request, got in zip(requests, found["rounds"][0], strict=True):
        wrong += differences(0, request, got, answer(made, pictures, request))
    assert not wrong, "\n".join(wrong)
    assert "at even distances" not in found["log"]


def test_a_worker_with_another_vtc_ends_the_start(
    folder: Callable[[str], Path],
    pictures: dict[str, Path],
    process: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """Ranks are processes of their own, which find another version of the package, whole and working."""
    other = tmp_path / "other"
    shutil.copytree(ROOT / "vtc", other / "vtc", ignore=shutil.ignore_patterns("eval"))
    file = other / "vtc" / "__init__.py"
    line = f'__version__ = "{vtc.__version__}"'
    text = file.read_text()
    assert text.count(line) == 1
    file.write_text(text.replace(line, '__version__ = "99.0"'))
    path = folder("llava")
    request = Request(("wide",), "uniform", 0.5).job(checkpoints.load("llava", path), pictures)
    done = process(
        path,
        [[request]],
        engine={"tensor_parallel_size": 2},
        env={"VLLM_WORKER_MULTIPROC_METHOD": "spawn"},
        other=str(other),
    )
    assert done.returncode != 0 and not (tmp_path / "out.json").exists()
    said = f"got 99.0 in this process and {vtc.__version__} in the one that started it"
    assert said in done.stdout + done.stderr, (done.stdout + done.stderr)[-6000:]
