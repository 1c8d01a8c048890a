"""vLLM with the plug-in against transformers under `vtc.compress`, token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vllm import checkpoints
from tests.vllm.engine.requests import Request, answer, main_requests, other_requests
from tests.vllm.families import FAMILIES
from vtc.plugins.vllm.families import TAGGED


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"smolvlm"}))  # refused
def test_every_answer_is_transformers(
    family: str,
    folder: Callable[[str], Path],
    pictures: dict[str, Path],
    engine: Callable[..., Any],
) -> None:
    """All requests in one batch, and once more over what the caches hold."""
    path = folder(family)
    made = checkpoints.load(family, path)
    requests = main_requests(made.two) + other_requests()
    if (
        "qwen" in family
    ):  # pixels are normalised in the worker, so their hash and the draw are others
        requests = [request for request in requests if request.method != "random"]
    if family in TAGGED:  # the share of every tile is written before an image is seen
        requests = [r for r in requests if r.method in ("", "uniform")]
    job = [request.job(made, pictures) for request in requests]
    found = engine(path, [job, job], count=True)
    expected = [answer(made, pictures, request) for request in requests]
    wrong = []
    for number, answers in enumerate(found["rounds"]):
        for request, got, want in zip(requests, answers, expected, strict=True):
            wrong += differences(number, request, got, want)
    assert not wrong, "\n".join(wrong)
    assert found["fallbacks"] == [0]


def differences(number: int, request: Request, got: Any, want: Any) -> list[str]:
    """What is not alike, said in words."""
    if (got["length"], got["ids"]) != (want["length"], want["ids"]):
        return [f"round {number}, {request}: {got}, expected {want}"]
    apart = max(abs(a - b) for a, b in zip(got["logs"], want["logs"], strict=True))
    return [f"round {number}, {request}: log probabilities {apart} apart"] if apart > 5e-3 else []
