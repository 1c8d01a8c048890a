"""What all tests with an engine share: tiny checkpoints, pictures, and a process for each engine."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.vllm import checkpoints

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def pytest_collection_modifyitems(items: list[Any]) -> None:
    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if HERE in Path(item.fspath).parents:
            item.add_marker(pytest.mark.vllm)
            if missing:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed; make test-vllm"))


#: settings of every process
ENV = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests/vllm/shim"), str(ROOT)]),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a family, written once."""
    base = tmp_path_factory.mktemp("checkpoints")

    def make(family: str) -> Path:
        path = base / family
        if not path.exists():
            path.mkdir()
            checkpoints.save(family, path)
        return path

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wide, a tall and a square picture, smooth and coloured."""
    base, rng = tmp_path_factory.mktemp("pictures"), torch.Generator().manual_seed(3)
    files = {}
    for name, size in {"wide": (90, 160), "tall": (170, 70), "square": (128, 128)}.items():
        small = torch.rand(1, 3, 7, 7, generator=rng)
        image = torch.nn.functional.interpolate(small, size, mode="bicubic").clamp(0, 1)[0]
        files[name] = base / f"{name}.png"
        pixels = (image.permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(pixels).save(files[name])
    return files


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs rounds of requests in an engine of its own; answers come into `out.json`."""

    def run(
        model: Path, rounds: list[list[dict[str, Any]]], **job: Any
    ) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **ENV, **job.pop("env", {})}
        engine = {"max_model_len": 2048, "max_num_seqs": 8, "limit_mm_per_prompt": {"image": 2}}
        engine.update(job.pop("engine", {}))
        work = {"model": str(model), "rounds": rounds, "steps": 10, "engine": engine, **job}
        (tmp_path / "job.json").write_text(json.dumps(work, default=str))
        command = [sys.executable, "-m", "tests.vllm.engine.run"]
        return subprocess.run(
            [*command, str(tmp_path / "job.json"), str(tmp_path / "out.json")],
            env=env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run


@pytest.fixture
def engine(
    tmp_path: Path, process: Callable[..., subprocess.CompletedProcess[str]]
) -> Callable[..., dict[str, Any]]:
    """The answers of such an engine, which must come to its end, and what it wrote."""

    def run(model: Path, rounds: list[list[dict[str, Any]]], **job: Any) -> dict[str, Any]:
        done = process(model, rounds, **job)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        found = json.loads((tmp_path / "out.json").read_text())
        return {**found, "log": done.stdout + done.stderr}

    return run
