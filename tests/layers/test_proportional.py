"""Attention in proportion to what a token stands for, together with a method inside the language model.

Layers behind a cut hold fewer keys, each with its own bias. The reference calls layer after layer by
hand, with masks whose columns of kept tokens have the logarithms of their weights.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import vtc
from tests.families import by_hand, tiny
from tests.families.ways import cache_name
from tests.layers import models
from tests.layers.methods import DropAll, Last, Steps
from tests.layers.test_with_boundary import Short
from vtc.methods.coverage import Coverage

NEW = 4
FIRST = Coverage(retention=0.4, proportional=True)
CUTS = [Last(layer=1), Steps(), DropAll()]
NAMES = ["llava", "llava_next", "qwen2_5_vl", "gemma3", "qwen3_vl", "mistral"]


class Weighed(Short):
    """A row that was shortened by hand, whose keys have weights."""

    def _mask(self, number: int, fresh: int, held: int, types: Tensor | None) -> Tensor:
        mask = super()._mask(number, fresh, held, types)
        cuts = [layer for layer in self.columns if layer <= number]
        columns = self.columns[max(cuts)] if cuts else range(len(self.short.weights))
        weights = torch.tensor([self.short.weights[column] for column in columns])
        mask[..., : len(weights)] += weights.log()
        return mask

    @torch.no_grad()
    def steps(self, tokens: list[int]) -> Tensor:
        """Logits behind each of these tokens."""
        out, following = [], int(self.positions.amax()) + 1
        for step, token in enumerate(tokens):
            hidden = self.lm.embed_tokens(torch.tensor([[token]]))
            positions = torch.full((len(self.positions), 1, 1), following + step)
            for number in range(len(self.lm.layers)):
                held = self.lists[number]
                mask = self._mask(number, 1, held.get_seq_length(), None)
                hidden = self._layer(number, hidden, positions, mask, held)
            out.append(self.logits(hidden)[0])
        return torch.stack(out)


def hands(model: Any, name: str, rows: tiny.Rows, method: Any) -> list[Weighed]:
    out, family = [], models.family_of(name)
    for index, row in enumerate(rows):
        short = by_hand.shorten(model, tiny.alone(family, rows, index), FIRST, "original")
        assert not row or max(short.weights) > 1
        out.append(Weighed(model, name, row, short, method))
    return out


#: in two families in every way to keep a cache
CASES = [
    *((name, "greedy") for name in NAMES),
    *((name, mode) for name in ("llava", "qwen2_5_vl") for mode in ("static", "no cache")),
]


@pytest.mark.parametrize("method", CUTS, ids=lambda m: m.name)
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_rows_of_a_batch(name: str, mode: str, method: Any) -> None:
    ask = {"static": dict(cache_implementation="static"), "no cache": dict(use_cache=False)}
    model, batch = models.build(name), tiny.inputs(models.family_of(name), tiny.MIXED)
    with torch.no_grad(), vtc.compress(model, [FIRST, method]):
        out = model.generate(
            **batch,
            **ask.get(mode, {}),
            max_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    found = torch.stack(out.logits, 1)
    for index, hand in enumerate(hands(model, name, tiny.MIXED, method)):
        tokens, want = hand.greedy(NEW)
        assert out.sequences[index, -NEW:].tolist() == tokens
        assert torch.allclose(found[index], want, atol=5e-4, rtol=0)


@pytest.mark.parametrize("method", CUTS, ids=lambda m: m.name)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_turn_of_text_behind_rows_that_changed_places(name: str, method: Any) -> None:
    rows: tiny.Rows = [[tiny.A], [tiny.C]]
    model, batch = models.build(name), tiny.inputs(models.family_of(name), rows)
    cache = DynamicCache(config=model.config.get_text_config())
    ids = torch.tensor([[7, 11, 9], [8, 6, 10]])
    with torch.no_grad(), vtc.compress(model, [FIRST, method]):
        model(**batch, **{cache_name(): cache})
        cache.reorder_cache(torch.tensor([1, 0]))
        mask = torch.nn.functional.pad(batch["attention_mask"].flip(0), (0, 3), value=1)
        draft = model(input_ids=ids + 1, attention_mask=mask, **{cache_name(): cache}).logits
        cache.crop(-3)
        got = model(input_ids=ids, attention_mask=mask, **{cache_name(): cache}).logits
    assert not torch.allclose(draft, got, atol=1e-2)
    for row, hand in enumerate(reversed(hands(model, name, rows, method))):
        assert torch.allclose(got[row], hand.steps(ids[row].tolist()), atol=5e-4, rtol=0)
