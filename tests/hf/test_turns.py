"""Conversations: a KV cache that a compressed turn filled is continued."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import vtc
from tests.hf import by_hand, tiny
from tests.hf.methods import KINDS, Norms
from vtc.errors import VTCError

NEW = 5
GREEDY = dict(max_new_tokens=NEW, do_sample=False)
POLICIES = pytest.mark.parametrize("positions", ["original", "contiguous"])


def words(seed: int, batch: int, count: int = 6) -> Tensor:
    """Random text."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(3, tiny.IMAGE, (batch, count), generator=rng)


def extend(batch: dict[str, Any], *parts: Tensor) -> dict[str, Any]:
    """The batch with more text behind it."""
    ids = torch.cat([batch["input_ids"], *parts], 1)
    more = ids.shape[1] - batch["input_ids"].shape[1]
    mask = torch.cat([batch["attention_mask"], torch.ones(len(ids), more, dtype=torch.long)], 1)
    return {**batch, "input_ids": ids, "attention_mask": mask}


def text(batch: dict[str, Any]) -> dict[str, Any]:
    """Without the images, which the cache holds already."""
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


@POLICIES
@pytest.mark.parametrize("kind", ["norms", "ragged", "backwards"])
@pytest.mark.parametrize("rows", [tiny.ONE, tiny.MIXED], ids=["one", "mixed"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_text_turns_equal_a_run_from_scratch(
    family: str, rows: list, kind: str, positions: str
) -> None:
    """Turns two and three reuse the cache and give what the whole conversation gives."""
    model, turn = tiny.build(family), tiny.inputs(family, rows)
    cache = DynamicCache(config=model.config.get_text_config())
    with vtc.compress(model, KINDS[kind], positions=positions):
        out = model.generate(**turn, **GREEDY, past_key_values=cache)
        for number in (2, 3):
            new = out[:, turn["input_ids"].shape[1] :]
            turn = extend(turn, new, words(number, len(out)))
            out = model.generate(**text(turn), **GREEDY, past_key_values=cache)
            assert torch.equal(out[:, :-NEW], turn["input_ids"])
            scratch = model.generate(**turn, **GREEDY)
            assert torch.equal(out, scratch)
    for i, row in enumerate(by_hand.rows(model, turn, KINDS[kind], positions)):
        assert out[i, -NEW:].tolist() == by_hand.greedy(model, row, NEW)[0]


@POLICIES
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_second_image_in_a_later_turn(family: str, positions: str) -> None:
    """The cache holds the first image; only the new one is encoded, compressed and read."""
    model, first = tiny.build(family), tiny.inputs(family, tiny.ONE)
    second = tiny.inputs(family, [[(70, 20)]], seed=9)
    cache = DynamicCache(config=model.config.get_text_config())
    with vtc.compress(model, Norms(0.5), positions=positions) as run:
        out = model.generate(**first, **GREEDY, past_key_values=cache)
        new = out[:, first["input_ids"].shape[1] :]
        both = extend(first, new, second["input_ids"])
        images = {k: second[k] for k in second if k.startswith(("pixel", "image"))}
        out = model.generate(**text(both), **images, **GREEDY, past_key_values=cache)
        assert len(run.reports[-1].images) == 1
        whole = dict(text(both))
        for key, value in images.items():
            old = first[key]
            if value.dim() == 5:
                most = max(value.shape[1], old.shape[1])
                value, old = (
                    torch.cat([v, v.new_zeros(1, most - v.shape[1], *v.shape[2:])], 1)
                    for v in (value, old)
                )
            whole[key] = torch.cat([old, value])
        assert torch.equal(out, model.generate(**whole, **GREEDY))
    (row,) = by_hand.rows(model, whole, Norms(0.5), positions)
    assert out[0, -NEW:].tolist() == by_hand.greedy(model, row, NEW)[0]


@pytest.mark.parametrize("family", ["llava-clip", "next-clip"])
def test_image_after_a_text_turn(family: str) -> None:
    """A conversation that starts without an image may bring one later."""
    model, second = tiny.build(family), tiny.inputs(family, tiny.ONE)
    start = {"input_ids": words(1, 1), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    cache = DynamicCache(config=model.config.get_text_config())
    with vtc.compress(model, Norms(0.5)):
        out = model.generate(**start, **GREEDY, past_key_values=cache)
        images = {k: second[k] for k in second if k.startswith(("pixel", "image"))}
        both = {**extend(start, out[:, 6:], second["input_ids"]), **images}
        out = model.generate(**both, **GREEDY, past_key_values=cache)
        assert torch.equal(out, model.generate(**both, **GREEDY))


@POLICIES
@pytest.mark.parametrize("family", ["llava-clip", "next-siglip"])
def test_returned_and_copied_caches(family: str, positions: str) -> None:
    """The cache in `return_dict_in_generate` output can be continued, also twice from a copy."""
    model, turn = tiny.build(family), tiny.inputs(family, tiny.ONE)
    with vtc.compress(model, Norms(0.5), positions=positions):
        out = model.generate(**turn, **GREEDY, return_dict_in_generate=True)
        new = out.sequences[:, turn["input_ids"].shape[1] :]
        for seed in (2, 3):
            more = extend(turn, new, words(seed, 1))
            cache = copy.deepcopy(out.past_key_values)
            got = model.generate(**text(more), **GREEDY, past_key_values=cache)
            assert torch.equal(got, model.generate(**more, **GREEDY))


def test_static_cache_object() -> None:
    """A static cache object is continued as well."""
    model, turn = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.ONE)
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=80)
    with vtc.compress(model, Norms(0.5)):
        out = model.generate(**turn, **GREEDY, past_key_values=cache)
        turn = extend(turn, out[:, -NEW:], words(2, 1))
        got = model.generate(**text(turn), **GREEDY, past_key_values=cache)
        assert torch.equal(got, model.generate(**turn, **GREEDY))


@pytest.mark.parametrize("family", ["llava-clip", "next-clip"])
def test_identity_turns_equal_the_bare_model(family: str) -> None:
    """Retention 1.0 with a cache over two turns is the bare model, bit by bit."""
    model, first = tiny.build(family), tiny.inputs(family, tiny.ONE)

    def talk() -> Tensor:
        cache = DynamicCache(config=model.config.get_text_config())
        out = model.generate(**first, **GREEDY, past_key_values=cache)
        turn = extend(first, out[:, -NEW:], words(2, 1))
        return model.generate(**text(turn), **GREEDY, past_key_values=cache)

    plain = talk()
    with vtc.compress(model, Norms(1.0)):
        assert torch.equal(talk(), plain)


@pytest.mark.parametrize("family", ["llava-clip", "next-clip"])
def test_cache_filled_by_a_forward(family: str) -> None:
    """A prefix cache filled by `model(...)` can be continued by `generate`."""
    model, turn = tiny.build(family), tiny.inputs(family, tiny.ONE)
    more = extend(turn, words(2, 1))
    with torch.no_grad(), vtc.compress(model, Norms(0.5)):
        expected = model.generate(**more, **GREEDY)
        cache = DynamicCache(config=model.config.get_text_config())
        cache = model(**turn, past_key_values=cache, use_cache=True).past_key_values
        assert torch.equal(model.generate(**text(more), **GREEDY, past_key_values=cache), expected)
        cache = model(**turn, use_cache=True).past_key_values
        assert torch.equal(model.generate(**text(more), **GREEDY, past_key_values=cache), expected)


@pytest.mark.parametrize("positions", ["original", "contiguous", "regrid"])
@pytest.mark.parametrize("family", ["llava-clip", "next-clip"])
@pytest.mark.parametrize("rows", [1, 2])
def test_users_own_decoding_loop(family: str, positions: str, rows: int) -> None:
    """A loop of `model(...)` calls over a growing mask gives the tokens of `generate`."""
    model = tiny.build(family)
    batch = tiny.inputs(family, [[(60, 60)], [(40, 90), (64, 30)]][:rows])
    with torch.no_grad(), vtc.compress(model, Norms(0.5), positions=positions):
        expected = model.generate(**batch, **GREEDY)[:, -NEW:]
        out, mask, got = model(**batch, use_cache=True), batch["attention_mask"], []
        for _ in range(NEW):
            scores = out.logits[:, -1].clone()
            scores[:, tiny.IMAGE] = -torch.inf
            got.append(scores.argmax(-1, keepdim=True))
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            out = model(input_ids=got[-1], attention_mask=mask, past_key_values=out.past_key_values)
    assert torch.equal(torch.cat(got, 1), expected)


def test_users_own_decoding_loop_without_a_mask() -> None:
    """The same without any mask: what is in the cache says enough."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.ONE)
    del batch["attention_mask"]
    with torch.no_grad(), vtc.compress(model, Norms(0.5)):
        expected = model.generate(**batch, **GREEDY)[:, -NEW:]
        out, got = model(**batch, use_cache=True), []
        for _ in range(NEW):
            scores = out.logits[:, -1].clone()
            scores[:, tiny.IMAGE] = -torch.inf
            got.append(scores.argmax(-1, keepdim=True))
            out = model(input_ids=got[-1], past_key_values=out.past_key_values)
    assert torch.equal(torch.cat(got, 1), expected)


def test_images_of_earlier_turns_given_again() -> None:
    """Images that the cache holds already do not fit the new part of the prompt: an error."""
    model, turn = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.ONE)
    cache = DynamicCache(config=model.config.get_text_config())
    with vtc.compress(model, Norms(0.5)):
        out = model.generate(**turn, **GREEDY, past_key_values=cache)
        more = extend(turn, out[:, -NEW:], words(2, 1))
        with pytest.raises(VTCError, match="pixel_values: .*placeholders"):
            model.generate(**more, **GREEDY, past_key_values=cache)


def test_only_the_new_tokens_given() -> None:
    """Only the new ids beside a whole mask: an error that says what to pass."""
    model, turn = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.ONE)
    cache = DynamicCache(config=model.config.get_text_config())
    with vtc.compress(model, Norms(0.5)):
        out = model.generate(**turn, **GREEDY, past_key_values=cache)
        more = extend(turn, out[:, -NEW:], words(2, 1))
        more["input_ids"] = more["input_ids"][:, -6:]
        with pytest.raises(VTCError, match="whole conversation"):
            model.generate(**text(more), **GREEDY, past_key_values=cache)
