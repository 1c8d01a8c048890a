"""What a method inside the language model leaves alone: bits, the model, its copies, other threads."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch

import vtc
from tests.families import tiny
from tests.hf.tiny import snapshot
from tests.layers import models
from tests.layers.methods import DropAll, Last, Steps
from vtc.layers import Choice

GREEDY = dict(max_new_tokens=5, do_sample=False)
KINDS = ("llava", "qwen3_vl", "gemma3_short", "paligemma", "idefics3", "llava_next_video")


@pytest.mark.parametrize("name", KINDS)
def test_nothing_dropped_changes_no_bit(name: str) -> None:
    model, batch = models.build(name), tiny.inputs(models.family_of(name), tiny.MIXED)
    ask: dict[str, Any] = dict(GREEDY, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        plain, steps = model(**batch).logits, model.generate(**batch, **ask)
        with vtc.compress(model, Last(share=1.0)) as run:
            assert torch.equal(model(**batch).logits, plain)
            ours = model.generate(**batch, **ask)
    assert torch.equal(ours.sequences, steps.sequences)
    assert all(map(torch.equal, ours.logits, steps.logits))
    assert not run.reports[0].cut_inside and run.reports[0].images[0].average_retention == 1.0


def left(model: Any) -> dict[str, Any]:
    """`snapshot`, without what transformers itself keeps of the last prompt."""
    found = snapshot(model)
    found["model"].pop("rope_deltas", None)
    return found


@pytest.mark.parametrize("method", [Last(), Steps(), DropAll()], ids=lambda m: m.name)
@pytest.mark.parametrize("name", KINDS)
def test_removal_leaves_nothing(name: str, method: Any) -> None:
    model, batch = models.build(name), tiny.inputs(models.family_of(name), tiny.MIXED)
    with torch.no_grad():
        plain, tokens = model(**batch).logits, model.generate(**batch, **GREEDY)
        before = left(model)
        handle = vtc.apply(model, method)
        assert left(model) != before
        model.generate(**batch, **GREEDY)
        assert not torch.equal(model(**batch).logits, plain)
        handle.remove()
        assert left(model) == before
        assert torch.equal(model(**batch).logits, plain)
        assert torch.equal(model.generate(**batch, **GREEDY), tokens)


def test_an_error_in_the_middle_leaves_nothing() -> None:
    class Breaks(Steps):
        def choose(self, view: Any) -> Choice:
            if view.seen.cut == 1:
                raise RuntimeError("out of memory")
            return super().choose(view)

    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED)
    with torch.no_grad():
        plain, before = model(**batch).logits, snapshot(model)
        with vtc.compress(model, Breaks()):
            with pytest.raises(RuntimeError, match="out of memory"):
                model.generate(**batch, **GREEDY)
            texts = {"input_ids": batch["input_ids"][1:2, -9:]}
            bare = copy.deepcopy(model)
            vtc.remove(bare)
            assert torch.equal(model(**texts).logits, bare(**texts).logits)
        assert snapshot(model) == before
        assert torch.equal(model(**batch).logits, plain)


def test_copies_use_their_own_weights() -> None:
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED)
    other = models.build("llava", seed=1)
    with torch.no_grad():
        with vtc.compress(other, Steps()):
            want = other(**batch).logits
        vtc.apply(model, Steps())
        mine = model(**batch).logits
        twin = copy.deepcopy(model)
        twin.load_state_dict(other.state_dict())
        assert torch.equal(twin(**batch).logits, want)
        assert torch.equal(model(**batch).logits, mine)
        vtc.remove(twin)
        assert torch.equal(twin(**batch).logits, other(**batch).logits)
        assert torch.equal(model(**batch).logits, mine)


def test_threads_do_not_see_each_other() -> None:
    model = models.build("llava")
    asked = [tiny.inputs("llava", rows, seed) for seed, rows in enumerate((tiny.MIXED, tiny.ONE))]
    jobs = [(m, b) for m in (Last(layer=1), Steps(), DropAll()) for b in asked]
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        method, batch = jobs[number]
        with torch.no_grad(), vtc.compress(model, method):
            for _ in range(3):
                found[number] = (model.generate(**batch, **GREEDY), model(**batch).logits)

    def all_at_once() -> None:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for number in range(len(jobs)):
        work(number)
    one_by_one = dict(found)
    found.clear()
    all_at_once()
    assert len(found) == len(jobs)
    for number, (tokens, logits) in found.items():
        assert torch.equal(tokens, one_by_one[number][0])
        assert torch.equal(logits, one_by_one[number][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Nothing dropped changes no bit; decoding goes on as a forward over the whole prompt does."""
    model, batch = models.build(name).to(dtype), tiny.inputs(name, tiny.MIXED)
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    with torch.no_grad():
        plain = model(**batch).logits
        with vtc.compress(model, Last(share=1.0)):
            assert torch.equal(model(**batch).logits, plain)
        with vtc.compress(model, DropAll(layer=2)):
            out = model.generate(
                **batch, **GREEDY, output_logits=True, return_dict_in_generate=True
            )
            alone = model.generate(
                **tiny.alone(name, tiny.MIXED, 0),
                **GREEDY,
                output_logits=True,
                return_dict_in_generate=True,
            )
    ours, rows = torch.stack(out.logits, 1)[0].float(), torch.stack(alone.logits, 1)[0].float()
    assert bool(ours.isfinite().all())
    off = (ours[0] - rows[0]).norm() / rows[0].norm()
    assert float(off) < 0.05


def test_outputs_are_as_long_as_the_prompt() -> None:
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED)
    shape = batch["input_ids"].shape
    with torch.no_grad(), vtc.compress(model, Steps()):
        out = model(**batch, output_hidden_states=True)
        assert out.logits.shape[:2] == shape
        assert [state.shape[:2] for state in out.hidden_states] == [shape] * (models.DEPTH + 1)
        assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)
        short = model(**batch, return_dict=False)
        assert torch.equal(short[0], out.logits)
        kept = model(**batch, logits_to_keep=3).logits
        assert torch.allclose(kept, out.logits[:, -3:], atol=1e-5)


def test_two_methods_on_one_model() -> None:
    """A block inside a block, and another patch beside: each call has its own."""
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED)
    with torch.no_grad():
        wants = []
        for method in (Last(), Steps(), vtc.create_method("uniform", retention=0.5)):
            with vtc.compress(model, method):
                wants.append(model(**batch).logits)
        vtc.apply(model, Last())
        assert torch.equal(model(**batch).logits, wants[0])
        with vtc.compress(model, Steps()):
            assert torch.equal(model(**batch).logits, wants[1])
            with vtc.compress(model, "uniform", retention=0.5):
                assert torch.equal(model(**batch).logits, wants[2])
            assert torch.equal(model(**batch).logits, wants[1])
        assert torch.equal(model(**batch).logits, wants[0])
        vtc.remove(model)
