"""Conversations on one cache, whose layers hold different numbers of tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import vtc
from tests.families import tiny
from tests.families.ways import cache_name
from tests.layers import models
from tests.layers.hand import Hand
from tests.layers.methods import DropAll, Last, Steps
from vtc import VTCError

NEW = 5
ROWS: tiny.Rows = [[tiny.A], [tiny.B, tiny.C]]
SECOND: tiny.Rows = [[tiny.C], [tiny.C]]


def words(count: int, seed: int = 5) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(*models.models.WORDS, (len(ROWS), count), generator=rng)


class Talk:
    """Three turns of two rows: images, text, an image."""

    def __init__(self, name: str) -> None:
        family = models.family_of(name)
        self.first = tiny.inputs(family, ROWS)
        # turns of one length, since there is no padding in the middle
        turns = (tiny.inputs(family, SECOND, seed) for seed in range(20))
        third = next(turn for turn in turns if bool(turn["attention_mask"].all()))
        self.ids = [self.first["input_ids"], words(4), third["input_ids"]]
        self.pixels = [
            {k: v for k, v in turn.items() if not k.endswith(("_ids", "_mask"))}
            for turn in (self.first, {}, third)
        ]

    def asked(self, number: int, row: int | None = None) -> dict[str, Any]:
        """What `generate` is given for a turn, of one row unpadded."""
        rows = slice(None) if row is None else slice(row, row + 1)
        ids = torch.cat(self.ids[: number + 1], 1)[rows]
        gap = torch.ones(len(self.ids[0]), ids.shape[1] - self.ids[0].shape[1], dtype=torch.long)
        mask = torch.cat([self.first["attention_mask"], gap], 1)[rows]
        out: dict[str, Any] = {**self.pixels[number]}
        if row is not None:
            per = {0: [len(r) for r in ROWS], 1: [0, 0], 2: [1, 1]}[number]
            for key, value in out.items():
                sizes = per
                if key == "pixel_values" and len(value) != sum(per):  # patch by patch (Qwen)
                    grids = self.pixels[number]["image_grid_thw"].prod(-1)
                    sizes = [int(part.sum()) for part in grids.split(per)]
                out[key] = value.split(sizes)[row]
            ids, mask = ids[mask.bool()][None], mask[mask.bool()][None]
        types = (ids == tiny.IMAGE).long()
        for key in ("mm_token_type_ids", "token_type_ids"):
            if key in self.first:
                out[key] = types
        return {**out, "input_ids": ids, "attention_mask": mask}


def by_hand(
    model: Any, name: str, method: Any, talk: Talk, row: int, turns: int
) -> tuple[list[int], Tensor]:
    """The row alone through its turns, then greedy."""
    lm = model.model.language_model
    hand = Hand(model, name, talk.asked(0, row), ROWS[row], method)
    cache = DynamicCache(config=model.config.get_text_config())
    seen: list[dict[str, Any]] = []
    hook = lm.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True
    )
    for number in range(turns):
        model.generate(
            **talk.asked(number, row), **{cache_name(): cache}, max_new_tokens=1, do_sample=False
        )
    hook.remove()
    hand.turn(seen[1], talk.ids[1][row], [])
    if turns == 3:
        hand.turn(seen[2], talk.ids[2][row], SECOND[row])
    return hand.greedy(NEW)


@pytest.mark.parametrize("method", [Last(layer=1), Steps(), DropAll()], ids=lambda m: m.name)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "llava_mistral"])
def test_turns(name: str, method: Any) -> None:
    """Images, text, and an image where the bare model can be shown another one: transformers counts
    M-RoPE positions of all images anew, and lays Gemma's image blocks over the wrong columns."""
    model, talk, turns = models.build(name), Talk(name), 3 if "llava" in name else 2
    want = [by_hand(model, name, method, talk, row, turns) for row in range(len(ROWS))]
    cache = DynamicCache(config=model.config.get_text_config())
    ask: dict[str, Any] = {cache_name(): cache, "do_sample": False}
    with vtc.compress(model, method) as run:
        for number in range(turns - 1):
            model.generate(**talk.asked(number), **ask, max_new_tokens=1)
        out = model.generate(
            **talk.asked(turns - 1),
            **ask,
            max_new_tokens=NEW,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert len(run.reports) == turns - 1
    for row, (tokens, logits) in enumerate(want):
        assert out.sequences[row, -NEW:].tolist() == tokens
        assert torch.allclose(torch.stack(out.logits, 1)[row], logits, atol=5e-4, rtol=0)


def steps(model: Any, batch: dict[str, Any], cache: Any, tokens: Tensor, front: int) -> Tensor:
    """Logits of a decoding loop of the caller's own, behind a prompt in a cache."""
    mask, out = batch["attention_mask"], []
    for step in range(tokens.shape[1]):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        ask: dict[str, Any] = {cache_name(): cache, "attention_mask": mask}
        ask["position_ids"] = mask.sum(1, keepdim=True) - 1 + front
        out.append(model(input_ids=tokens[:, step : step + 1], **ask).logits[:, -1])
    return torch.stack(out, 1)


@pytest.mark.parametrize("kind", ["dynamic", "without a config", "static"])
@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_a_decoding_loop_of_ones_own(name: str, kind: str) -> None:
    model, batch = models.build(name), tiny.inputs(name, ROWS)
    config, length = model.config.get_text_config(), batch["input_ids"].shape[1] + NEW
    made: dict[str, Any] = {
        "dynamic": lambda: DynamicCache(config=config),
        "without a config": DynamicCache,
        "static": lambda: StaticCache(config=config, max_cache_len=length),
    }
    if kind == "without a config" and name == "gemma3":
        pytest.skip("sliding layers need one")
    cache, positions = made[kind](), (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), vtc.compress(model, Steps()):
        want = model.generate(
            **batch,
            max_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        model(**batch, position_ids=positions, use_cache=True, **{cache_name(): cache})
        got = steps(model, batch, cache, want.sequences[:, -NEW:-1], 0)
    assert torch.allclose(got, torch.stack(want.logits[1:], 1), atol=2e-4, rtol=0)


def filled(model: Any, batch: dict[str, Any]) -> Any:
    cache = DynamicCache(config=model.config.get_text_config())
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    model(**batch, position_ids=positions, use_cache=True, **{cache_name(): cache})
    return cache


MOVES: dict[str, Any] = {
    "crop": ([0, 1], lambda cache: cache.crop(-2)),
    "repeat": ([0, 0, 1, 1], lambda cache: cache.batch_repeat_interleave(2)),
    "select": ([1], lambda cache: cache.batch_select_indices(torch.tensor([1]))),
    "reorder": ([1, 0], lambda cache: cache.reorder_cache(torch.tensor([1, 0]))),
    "copy": ([0, 1], lambda cache: None),
}


@pytest.mark.parametrize("move", MOVES)
def test_what_owners_do_with_a_cache(move: str) -> None:
    """A draft that is taken back, rows that are repeated, chosen and moved: as if nothing was."""
    model, batch = models.build("llava"), tiny.inputs("llava", ROWS)
    rows, act = MOVES[move]
    tokens = words(3, 8)
    with torch.no_grad(), vtc.compress(model, Steps()):
        want = steps(model, batch, filled(model, batch), tokens, 0)[rows]
        cache = filled(model, batch)
        if move == "crop":
            steps(model, batch, cache, words(2, 9), 0)
        act(cache)
        if move == "copy":
            cache, used = copy.deepcopy(cache), cache
            steps(model, batch, used, words(2, 9), 0)
        texts = {key: batch[key][rows] for key in ("input_ids", "attention_mask")}
        got = steps(model, texts, cache, tokens[rows], 0)
    assert torch.allclose(got, want, atol=2e-4, rtol=0)


def test_a_cache_that_was_reset() -> None:
    model, batch = models.build("llava"), tiny.inputs("llava", ROWS)
    tokens = words(3, 8)
    with torch.no_grad(), vtc.compress(model, Steps()):
        want = steps(model, batch, filled(model, batch), tokens, 0)
        cache = filled(model, batch)
        cache.reset()
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        model(**batch, position_ids=positions, use_cache=True, **{cache_name(): cache})
        assert torch.equal(steps(model, batch, cache, tokens, 0), want)


def test_a_crop_into_the_image_is_refused() -> None:
    model, batch = models.build("llava"), tiny.inputs("llava", ROWS)
    with torch.no_grad(), vtc.compress(model, Steps()):
        cache = filled(model, batch)
        cache.crop(-12)
        with pytest.raises(VTCError, match=f"{cache_name()}: cannot be continued"):
            steps(model, batch, cache, words(1), 0)


def test_the_inner_model_goes_on() -> None:
    """A step of the inner model, past the hooks of the outer one."""
    model, batch = models.build("llava"), tiny.inputs("llava", ROWS)
    tokens = words(3, 8)
    with torch.no_grad(), vtc.compress(model, Steps()):
        want = steps(model, batch, filled(model, batch), tokens, 0)
        cache, mask = filled(model, batch), batch["attention_mask"]
        for step in range(3):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            hidden = model.model(
                input_ids=tokens[:, step : step + 1],
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                **{cache_name(): cache},
            ).last_hidden_state
            assert torch.equal(model.lm_head(hidden)[:, -1], want[:, step])
