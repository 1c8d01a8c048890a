"""A method in front of the language model and one inside it: the short prompt is what is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.families import by_hand, tiny
from tests.layers import models
from tests.layers.hand import Hand
from tests.layers.methods import DropAll, Last, Steps
from vtc.methods.random import Random

NEW = 5
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": dict(do_sample=True, top_k=8),
    "beams": dict(num_beams=3),
    "static": dict(cache_implementation="static"),
    "no cache": dict(use_cache=False),
    "prompt lookup": dict(prompt_lookup_num_tokens=2),
}


class Short(Hand):
    """A row that was shortened by hand, cut inside by hand."""

    def __init__(self, model: Any, name: str, row: tiny.Rows, short: by_hand.Short, method: Any):
        self.short = short
        ids = {"input_ids": short.ids, "attention_mask": torch.ones_like(short.ids)}
        super().__init__(model, name, {**ids, **short.types}, row, method)

    def given(self, inputs: dict[str, Any]) -> dict[str, Any]:
        features = self.short.features.get("image", [])
        deep = [torch.cat(level) for level in self.short.deep.get("image", [])]
        return {
            "inputs_embeds": self.short.embeds,
            "position_ids": self.short.positions,
            "deepstack_visual_embeds": deep if features else None,
        }

    def sizes_of(self, row: Any) -> list[int]:
        return [len(features) for features in self.short.features.get("image", [])]


@pytest.mark.parametrize("method", [Last(layer=1), Steps(), DropAll()], ids=lambda m: m.name)
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "gemma3", "qwen3_vl"])
def test_rows_of_a_batch(name: str, method: Any) -> None:
    model, batch = models.build(name), tiny.inputs(name, tiny.MIXED)
    first = Random(retention=0.6)
    with torch.no_grad(), vtc.compress(model, [method, first]) as run:
        out = model.generate(
            **batch,
            max_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    report = run.reports[0]
    assert report.method == f"random+{method.name}"
    found = torch.stack(out.logits, 1)
    for index, row in enumerate(tiny.MIXED):
        short = by_hand.shorten(model, tiny.alone(name, tiny.MIXED, index), first, "original")
        hand = Short(model, name, row, short, method)
        tokens, want = hand.greedy(NEW)
        assert out.sequences[index, -NEW:].tolist() == tokens
        assert torch.allclose(found[index], want, atol=5e-4, rtol=0)
        mine = [image for image in report.images if image.sample == index]
        for image, size in zip(mine, hand.sizes, strict=True):
            assert image.tokens_entering == size
            every = [size, *(count for _, count in image.cuts)]
            edges = [0, *(layer for layer, _ in image.cuts), models.DEPTH]
            spans = [b - a for a, b in zip(edges[:-1], edges[1:], strict=True)]
            share = sum(n * s for n, s in zip(every, spans, strict=True)) / models.DEPTH
            assert image.kv_retention == pytest.approx(share / image.tokens_before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_modes(name: str, mode: str) -> None:
    """Tokens of the bare model on the short prompt alone, cut by the same rule."""
    rows: tiny.Rows = [[tiny.A]] if mode == "prompt lookup" else [[tiny.A], [tiny.C]]
    model, batch = models.build(name), tiny.inputs(name, rows)
    first = Random(retention=0.6)
    ask = dict(max_new_tokens=NEW, do_sample=False) | MODES[mode]
    if mode not in ("greedy", "no cache", "static", "prompt lookup"):
        plain = batch
        with torch.no_grad(), vtc.compress(model, [first, Steps()]):
            torch.manual_seed(1)
            got = model.generate(**plain, **ask)
            torch.manual_seed(1)
            again = model.generate(**plain, **ask, use_cache=False)
        assert torch.equal(got, again)
        return
    with torch.no_grad(), vtc.compress(model, [first, Steps()]):
        got = model.generate(**batch, **ask)[:, -NEW:].tolist()
    for index, row in enumerate(rows):
        short = by_hand.shorten(model, tiny.alone(name, rows, index), first, "original")
        assert Short(model, name, row, short, Steps()).greedy(NEW)[0] == got[index]


def test_by_name_and_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from vtc import registry

    monkeypatch.setitem(registry._METHODS.made, "steps", Steps)
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED)
    found: list[Tensor] = []
    with torch.no_grad():
        for plan in ("random+steps", "steps+random", ["steps", "random"], [Steps(), Random()]):
            with vtc.compress(model, plan) as run:
                found.append(model(**batch).logits)
            assert run.reports[-1].method == "random+steps"
            assert [name for name, _ in run.reports[-1].stages] == ["random", "steps"]
    assert all(torch.equal(found[0], other) for other in found)
