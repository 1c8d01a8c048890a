"""Nothing that a method does ends an engine, and no request is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vllm import checkpoints
from tests.vllm.engine.requests import Request, answer
from tests.vllm.engine.test_equal import differences

BROKEN = ("broken_raises", "broken_count", "broken_nan")


def test_a_broken_method_loses_no_request(
    folder: Callable[[str], Path], pictures: dict[str, Path], engine: Callable[..., Any]
) -> None:
    """They get tokens at even distances; what is beside them in the batch is as ever."""
    path = folder("llava")
    made = checkpoints.load("llava", path)
    good = Request(("wide",), "globalcom2", 0.25)
    requests = [good, *[Request(("tall",), name, tokens=16) for name in BROKEN], good]
    job = [request.job(made, pictures) for request in requests]
    env = {"VTC_IMPORT": "tests.vllm.engine.broken"}
    found = engine(path, [job], env=env, count=True)
    (answers,) = found["rounds"]
    assert found["fallbacks"] == [3]
    assert found["log"].count("whose tokens are now taken at even distances") == 3
    want = answer(made, pictures, good)
    assert not differences(0, good, answers[0], want) + differences(0, good, answers[-1], want)
    short = answer(made, pictures, Request(("tall",), "uniform", tokens=16))["length"]
    assert [each["length"] for each in answers[1:4]] == [short] * 3
    assert answers[1]["ids"] == answers[2]["ids"] == answers[3]["ids"]


def test_an_image_in_chunks_and_in_slices(
    folder: Callable[[str], Path], pictures: dict[str, Path], engine: Callable[..., Any]
) -> None:
    """Qwen2.5-VL with pixels as transformers has them, 32 tokens a step: prefills split images, and the
    encoder never runs more images than it was measured with."""
    path = folder("qwen2_5_vl")
    made = checkpoints.load("qwen2_5_vl", path)
    requests = [
        *(Request(("wide", "tall"), name, 0.375) for name in ("random", "globalcom2", "uniform")),
        Request(("tall",), "random", 0.5),
        Request(("wide",)),
    ]
    job = [request.job(made, pictures) for request in requests]
    steps = {"max_num_batched_tokens": 64, "enable_chunked_prefill": True}
    found = engine(path, [job, job], engine={**steps, "mm_device_do_normalize": False}, count=True)
    wrong = []
    for number, answers in enumerate(found["rounds"]):
        for request, got in zip(requests, answers, strict=True):
            wrong += differences(number, request, got, answer(made, pictures, request))
    assert not wrong, "\n".join(wrong)
    assert found["fallbacks"] == [0]


@pytest.mark.parametrize("cache", ["lru", "shm"])
def test_an_image_of_a_refused_prompt_is_served_afterwards(
    cache: str,
    folder: Callable[[str], Path],
    pictures: dict[str, Path],
    engine: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Two images of 6 x 10 tokens are refused for their positions once they are processed. The engine,
    in a process of its own, never got them, whatever the cache of the process in front of it says."""
    path = tmp_path / "model"
    shutil.copytree(folder("qwen2_5_vl"), path)
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 55
    (path / "config.json").write_text(json.dumps(config))
    made = checkpoints.load("qwen2_5_vl", path)
    double = Request(("wide", "wide"), "uniform", tokens=1)
    single = Request(("wide",), "uniform", tokens=1)
    rounds = [[request.job(made, pictures)] for request in (double, single, double, single)]
    found = engine(
        path,
        rounds,
        engine={"max_model_len": 55, "mm_processor_cache_type": cache},
        env={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        refused=True,
    )
    for turn in (0, 2):
        assert "2 images in 42 tokens take positions to 60" in found["rounds"][turn]
    want = answer(made, pictures, single)
    for turn in (1, 3):
        (got,) = found["rounds"][turn]
        assert not differences(turn, single, got, want)
