"""What is remembered of images, and forgotten; no vLLM is needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vtc.plugins.vllm import metrics


class Cache(dict[str, str]):
    """As vLLM's API server has it: an image that was sent once comes back without its data."""

    def send(self, image: str) -> str | None:
        known = image in self
        self[image] = image
        return None if known else image

    def invalidate(self, key: str) -> None:
        self.pop(key, None)


def processed(cache: Cache, images: list[str]) -> dict[str, dict[str, list[str | None]]]:
    sent = [cache.send(image) for image in images]
    return {"mm_hashes": {"image": [*images]}, "mm_kwargs": {"image": sent}}


def test_a_refused_request_leaves_no_image_that_the_engine_never_saw() -> None:
    cache = Cache()
    engine = {each for each in processed(cache, ["cat"])["mm_kwargs"]["image"] if each}
    refused = processed(cache, ["cat", "dog", "dog"])
    assert refused["mm_kwargs"]["image"] == [None, "dog", None]
    metrics.forget(cache, refused)
    for image in ("cat", "dog"):
        (data,) = processed(cache, [image])["mm_kwargs"]["image"]
        assert data is not None or image in engine
    assert "cat" in cache  # the engine has it
    metrics.forget(None, refused)  # a server without a cache


def test_the_latest_sizes_are_known() -> None:
    sizes = metrics.Sizes(most=2)
    for key in ("a", "b"):
        sizes.put(key, (9, 3))
    assert sizes.get("a") == (9, 3)
    sizes.put("c", (4, 2))
    assert (sizes.get("a"), sizes.get("b"), sizes.get("c")) == ((9, 3), None, (4, 2))


def test_failures_are_read_anew_and_their_file_does_not_grow_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prometheus_client` comes with vLLM; only the numbers that it is given are looked at."""

    def family(name: str, words: str, value: float) -> Any:
        return name, value

    core = SimpleNamespace(CounterMetricFamily=family)
    monkeypatch.setitem(sys.modules, "prometheus_client", SimpleNamespace(core=core))
    monkeypatch.setitem(sys.modules, "prometheus_client.core", core)
    path = tmp_path / "tally"
    path.touch()
    told = metrics._Fallbacks(str(path))
    assert list(told.collect()) == [("vtc_fallbacks", 0)]
    metrics.fell_back(str(path))
    os.utime(path, (0, 0))
    assert list(told.collect()) == [("vtc_fallbacks", 1)]
    assert path.stat().st_mtime > 0  # whoever cleans temporary files goes by this
    path.unlink()
    assert list(told.collect()) == []
