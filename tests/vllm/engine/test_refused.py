"""What vLLM's own configuration is refused for, before an engine begins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vllm.engine.conftest import ENV, ROOT

DEFAULT = {"vtc_method": "uniform", "vtc_retention": 0.5}


def test_wrong_settings_end_the_start(folder: Callable[[str], Path], tmp_path: Path) -> None:
    llava, qwen = {"model": str(folder("llava"))}, {"model": str(folder("qwen2_5_vl"))}
    ranks = {"tensor_parallel_size": 2, "mm_encoder_tp_mode": "data"}
    keys = {"vtc_method": "visionzip", "vtc_retention": 0.5}
    cases = [
        (llava, ""),
        ({**llava, "mm_processor_kwargs": DEFAULT}, ""),
        ({**llava, "mm_processor_kwargs": {**DEFAULT, "vtc_method": "unifrom"}}, "did you mean"),
        (
            {**llava, "compilation_config": {"cudagraph_mm_encoder": True}},
            "cudagraph_mm_encoder: got True",
        ),
        (
            {**llava, "compilation_config": {"compile_mm_encoder": True}},
            "compile_mm_encoder: got True",
        ),
        (
            {**llava, "enable_lora": True, "enable_tower_connector_lora": True},
            "enable_tower_connector_lora: got True",
        ),
        ({**qwen, "video_pruning_rate": 0.5}, "video_pruning_rate: got True"),
        ({**qwen, **ranks, "mm_processor_kwargs": DEFAULT}, ""),
        ({**qwen, **ranks, "mm_processor_kwargs": keys}, "'visionzip' reads the vision tower"),
    ]
    said = refused([case for case, _ in cases], tmp_path)
    for (case, message), why in zip(cases, said, strict=True):
        assert message in why if message else why is None, (case, why)


def test_a_prompt_that_takes_too_many_positions_is_refused(
    folder: Callable[[str], Path], pictures: dict[str, Path], tmp_path: Path
) -> None:
    """Pictures are 6 x 10 tokens. Of each one is left, so that two are 8 tokens with positions to 26."""
    path = tmp_path / "model"
    shutil.copytree(folder("qwen2_5_vl"), path)
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 20
    (path / "config.json").write_text(json.dumps(config))
    wide, one = str(pictures["wide"]), {"vtc_method": "uniform", "vtc_tokens": 1}
    place = "<|vision_start|><|image_pad|><|vision_end|>"
    requests = [
        {"prompt": place * count + "ab", "images": [wide] * count, "keywords": one}
        for count in (1, 2)
    ]
    model = {"model": str(path), "max_model_len": 20}
    single, double = refused([{**model, "request": request} for request in requests], tmp_path)
    assert single is None, single
    assert "2 images in 8 tokens take positions to 26" in double, double
    assert "the model knows 20" in double


def refused(cases: list[dict[str, Any]], folder: Path) -> list[Any]:
    """Why vLLM refuses each case."""
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "tests.vllm.engine.configure", str(folder / "cases.json")]
    done = subprocess.run(
        [*command, str(folder / "out.json")],
        env={**os.environ, **ENV},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads((folder / "out.json").read_text())


def test_a_server_with_a_wrong_default_says_so_and_ends(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    wrong = json.dumps({"vtc_method": "unifrom", "vtc_retention": 0.5})
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder("llava"))]
    done = subprocess.run(
        [*command, "--max-model-len", "512", "--mm-processor-kwargs", wrong],
        env={**os.environ, **ENV},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0
    (line,) = (line for line in said.splitlines() if "vtc_method: got 'unifrom'" in line)
    assert "did you mean 'uniform'" in line
    assert "EngineCore" not in said  # no other process was begun
