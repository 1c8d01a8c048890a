"""A cache whose prompt was cut between layers is none for a bare model, which is told so."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import vtc
from tests.families import tiny
from tests.families.ways import cache_name
from tests.hf.tiny import snapshot
from tests.layers import models
from tests.layers.methods import DropAll, Last
from vtc import VTCError

REFUSED = "cannot be continued by a bare model.*its layers hold"


class Prefilled:
    """A prompt of two rows in a cache, and what goes on behind it."""

    def __init__(self, name: str, static: bool = False, method: Any = None) -> None:
        self.model, self.batch = models.build(name), tiny.inputs(name, [[tiny.A], [tiny.C]])
        self.method = method or Last(layer=1)
        length = self.batch["input_ids"].shape[1]
        config = self.model.config.get_text_config()
        self.cache = (
            StaticCache(config=config, max_cache_len=length + 8)
            if static
            else DynamicCache(config=config)
        )
        with torch.no_grad(), vtc.compress(self.model, self.method):
            self.model(**self.batch, **self.held)

    @property
    def held(self) -> dict[str, Any]:
        return {cache_name(): self.cache, "use_cache": True}

    @torch.no_grad()
    def on(self, words: int = 1) -> Tensor:
        """Logits of a few words more."""
        mask = self.batch["attention_mask"]
        mask = torch.cat([mask, mask.new_ones(len(mask), words)], 1)
        positions = (mask.cumsum(1) - 1)[:, -words:]
        ids = self.batch["input_ids"][:, -words:]
        return self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, **self.held
        ).logits


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", ["llava", "gemma3"])
@pytest.mark.parametrize("words", [1, 3])
def test_a_bare_model(name: str, static: bool, words: int) -> None:
    case = Prefilled(name, static)
    before = snapshot(case.model)
    with pytest.raises(VTCError, match=REFUSED):
        case.on(words)
    with vtc.compress(case.model, "uniform", retention=0.5), pytest.raises(VTCError, match=REFUSED):
        case.on(words)
    assert snapshot(case.model) == before
    # nothing was appended, and who knows how goes on
    with vtc.compress(case.model, case.method):
        got = case.on(words)
    again = Prefilled(name, static)
    with vtc.compress(again.model, again.method):
        assert torch.equal(again.on(words), got)
    with pytest.raises(VTCError, match=REFUSED):
        again.on(words)


def test_generate_of_a_bare_model() -> None:
    case = Prefilled("llava")
    ids = torch.cat([case.batch["input_ids"], torch.full((2, 1), 7)], 1)
    mask = torch.cat([case.batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    ask = dict(input_ids=ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
    with pytest.raises(VTCError, match=REFUSED):
        case.model.generate(**ask, **case.held)
    with vtc.compress(case.model, case.method):
        case.model.generate(**ask, **case.held)


HANDED_ON: dict[str, Callable[[Any], Any]] = {
    "copied": copy.deepcopy,
    "pickled": lambda cache: pickle.loads(pickle.dumps(cache)),
}


@pytest.mark.parametrize("way", HANDED_ON)
def test_a_cache_that_is_handed_on(way: str) -> None:
    case = Prefilled("llava", method=DropAll())
    with vtc.compress(case.model, case.method):
        want = Prefilled("llava", method=case.method).cache
        case.cache = HANDED_ON[way](want)
        logits = case.on(2)
        case.cache = want
        assert torch.equal(case.on(2), logits)
    with pytest.raises(VTCError, match=REFUSED):
        case.on()


def test_another_model_with_the_same_method() -> None:
    case = Prefilled("llava")
    case.model = copy.deepcopy(case.model)
    with vtc.compress(case.model, case.method):
        case.on()


def test_the_inner_model_is_compressed_as_well() -> None:
    case = Prefilled("gemma3")
    mask = case.batch["attention_mask"]
    mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    ask = dict(input_ids=torch.full((2, 1), 7), attention_mask=mask, **case.held)
    with torch.no_grad(), vtc.compress(case.model, case.method):
        case.model.model(**ask)


def test_a_cache_that_was_reset_is_anybodys() -> None:
    case = Prefilled("llava", static=True)
    case.cache.reset()
    with torch.no_grad():
        bare = case.model(**case.batch, **case.held).logits
        fresh = Prefilled("llava", static=True, method=Last(layer=1, share=1.0))
        fresh.cache.reset()
        assert torch.equal(fresh.model(**fresh.batch, **fresh.held).logits, bare)
    case.on()


def _no_memory(*_: Any) -> None:
    raise RuntimeError("no memory")


def test_a_call_that_failed_leaves_the_refusal() -> None:
    """Nobody may go on bare because a call under the method ended half-way."""
    case = Prefilled("llava")
    handle = case.model.model.language_model.layers[3].register_forward_hook(_no_memory)
    with vtc.compress(case.model, case.method), pytest.raises(RuntimeError, match="no memory"):
        case.on()
    handle.remove()
    with pytest.raises(VTCError, match=REFUSED):
        case.on()


def test_a_call_that_was_refused_leaves_the_refusal() -> None:
    case = Prefilled("llava")
    mask = torch.ones(2, 1, 1, case.batch["input_ids"].shape[1] + 1)
    one = case.batch["input_ids"][:, -1:]
    with vtc.compress(case.model, case.method), pytest.raises(VTCError, match="made already"):
        case.model(input_ids=one, attention_mask=mask, **case.held)
    with pytest.raises(VTCError, match=REFUSED):
        case.on()
    again = Prefilled("llava")
    with vtc.compress(case.model, case.method):  # nothing was appended
        got = case.on()
    with vtc.compress(again.model, again.method):
        assert torch.equal(again.on(), got)
