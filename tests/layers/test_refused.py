"""What cannot be cut inside the language model is refused with the reason, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import vtc
from tests.families import docowl, mllama, tiny
from tests.families.ways import cache_name
from tests.hf.tiny import snapshot
from tests.layers import models
from tests.layers.methods import DropAll, Last, Steps
from vtc import VTCError
from vtc.layers import Choice
from vtc.plugins.hf.adapters.llava import Llava


@pytest.mark.parametrize(
    "build, reason",
    [
        (mllama.build, "reads images by cross-attention: no visual tokens stand among its text"),
        (docowl.build, "code comes with its checkpoint"),
    ],
    ids=["mllama", "docowl"],
)
def test_families_without_visual_tokens(build: Callable[[], Any], reason: str) -> None:
    model = build()
    before = snapshot(model)
    for plan in (Last(), ["uniform", Last()]):
        with pytest.raises(VTCError, match=reason):
            vtc.apply(model, plan)
    assert snapshot(model) == before


def test_a_family_without_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Llava, "stages", ("boundary",))
    with pytest.raises(VTCError, match="'last' works in the layers.*this version has no stage"):
        vtc.apply(models.build("llava"), Last())


@pytest.mark.parametrize("layers", [(0,), (2, 2), (3, 1), (5,), ()], ids=str)
def test_cuts_that_are_none_of_the_models(layers: tuple[int, ...]) -> None:
    model = models.build("llava")
    before = snapshot(model)
    with pytest.raises(VTCError, match="layers: method 'steps' cuts in front of .*from 1 to 4"):
        vtc.apply(model, Steps(layers=layers))
    assert snapshot(model) == before


class Text(Last):
    def choose(self, view: Any) -> Choice:
        return Choice(torch.zeros_like(view.seen.valid))


class Shape(Last):
    def choose(self, view: Any) -> Choice:
        return Choice(view.seen.valid[:, 1:])


class Values(Last):
    def choose(self, view: Any) -> Choice:
        return Choice(view.seen.valid, view.hidden[:, 1:])


class Unread(Steps):
    def choose(self, view: Any) -> Choice:
        return Choice(view.before[..., 0] > 0)


class Counts(Last):
    def counts(self, tokens: int, depth: int) -> tuple[int, ...]:
        return (tokens + 1,)


WRONG: dict[str, tuple[Any, str]] = {
    "text": (Text(), "dropped text, which has to stay"),
    "shape": (Shape(), "as what stays, expected torch.bool"),
    "values": (Values(), "returned hidden states"),
    "unread": (Unread(), "does not say `reads_before`"),
    "counts": (Counts(), "expected one for each of 1 cuts, from 0 to 16"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_methods_return_is_checked(case: str) -> None:
    method, message = WRONG[case]
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.ONE)
    with torch.no_grad():
        plain = model(**batch).logits
        with vtc.compress(model, method), pytest.raises(VTCError, match=message):
            model(**batch)
        assert torch.equal(model(**batch).logits, plain)


def test_a_prompt_in_pieces() -> None:
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.ONE)
    with vtc.compress(model, DropAll()):
        with pytest.raises(VTCError, match="prefill_chunk_size: got 7.*allowed is None"):
            model.generate(**batch, max_new_tokens=2, prefill_chunk_size=7)


def test_masks_that_are_made_already() -> None:
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.ONE)
    length = batch["input_ids"].shape[1]
    made = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    with torch.no_grad(), vtc.compress(model, Steps()):
        with pytest.raises(VTCError, match="attention_mask: got 4 dimensions"):
            model(**{**batch, "attention_mask": made})
        cache = model(**batch, use_cache=True)
        cache = cache["cache"] if "cache" in cache else cache["past_key_values"]
        step = torch.ones(1, 1, 1, length + 1, dtype=torch.bool)
        ids = batch["input_ids"][:, -1:]
        with pytest.raises(VTCError, match="attention_mask: got one that is made already"):
            model(input_ids=ids, attention_mask=step, **{cache_name(): cache})


def test_several_samples_in_a_row() -> None:
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.ONE)
    ids = batch["input_ids"]
    positions = torch.arange(ids.shape[1])
    positions[-4:] = torch.arange(4)
    ask = {"input_ids": ids, "pixel_values": batch["pixel_values"]}
    for plan in (Steps(), [Steps(), "uniform"]):
        with torch.no_grad(), vtc.compress(model, plan):
            with pytest.raises(VTCError, match="a row holds several samples"):
                model(**ask, position_ids=positions[None], use_cache=False)


def test_a_family_without_an_adapter() -> None:
    """Whatever the fallback takes is cut as well."""
    model, batch = tiny.build(tiny.UNKNOWN), tiny.inputs(tiny.UNKNOWN, tiny.MIXED)
    with torch.no_grad(), pytest.warns(UserWarning, match="has no adapter"):
        plain = model(**batch).logits
        with vtc.compress(model, DropAll(layer=1)) as run:
            assert not torch.equal(model(**batch).logits, plain)
    assert [image.cuts for image in run.reports[0].images] == [[(1, 0)]] * 4
