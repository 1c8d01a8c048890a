"""What is remembered of images, and forgotten; no vLLM is needed."""

from __future__ import annotations

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
