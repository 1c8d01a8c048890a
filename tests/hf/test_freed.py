"""What a call made is freed with its last reference, and nothing waits for the garbage collector.

The collector counts objects and not bytes. A KV cache in a cycle would stay on a GPU for many calls.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import vtc
from tests.hf import tiny
from tests.hf.methods import KINDS

OPTIONS: dict[str, dict[str, Any]] = {
    "fastv": {"layer": 1, "retention": 0.75},
    "coverage": {"retention": 0.3, "proportional": True},
}


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Without the garbage collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def garbage(call: Callable[[], Any]) -> list[Any]:
    """The tensors and caches that only the garbage collector would free."""
    call()
    gc.collect()
    try:
        gc.set_debug(gc.DEBUG_SAVEALL)
        call()
        gc.collect()
        return [x for x in gc.garbage if isinstance(x, (torch.Tensor, DynamicCache))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def compressed(model: Any, what: str) -> Any:
    """`model` under a method in front of its language model or inside."""
    if what in OPTIONS:
        return vtc.compress(model, what, **OPTIONS[what])
    return vtc.compress(model, KINDS[what])


@pytest.mark.parametrize("what", ["norms", "ragged", *OPTIONS])
@pytest.mark.parametrize("family", ["llava-clip", "next-siglip"])
def test_nothing_waits_for_the_garbage_collector(family: str, what: str, uncollected: None) -> None:
    model, batch = tiny.build(family), tiny.inputs(family, tiny.ONE)
    with compressed(model, what):
        assert not garbage(lambda: model(**batch))
        assert not garbage(lambda: model.generate(**batch, max_new_tokens=3, do_sample=False))


@pytest.mark.parametrize("what", ["norms", *OPTIONS])
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_cache_keeps_its_type_and_its_twin_its_own_notes(
    what: str, twin: Callable[[Any], Any], uncollected: None
) -> None:
    model, batch = tiny.build("llava-clip"), tiny.inputs("llava", tiny.ONE)
    cache = DynamicCache(config=model.config.get_text_config())
    with compressed(model, what):
        model.generate(**batch, max_new_tokens=3, do_sample=False, past_key_values=cache)
    assert isinstance(cache, DynamicCache)
    assert type(cache).__name__ == "DynamicCache"
    other = twin(cache)
    assert type(other) is type(cache)
    assert {name for name in vars(other) if name.startswith("_vtc")} == {
        name for name in vars(cache) if name.startswith("_vtc")
    }
    cache.reset()
    assert type(cache) is DynamicCache
    assert not [name for name in vars(cache) if name.startswith("_vtc")]
    assert [name for name in vars(other) if name.startswith("_vtc")], "it lost its own"
    gone = weakref.ref(other)
    del other
    assert gone() is None
