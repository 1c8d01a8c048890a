"""Attention in proportion to what a token stands for, in every way to call: as if it stood there as
often.

The reference (`copies.py`) has no bias and no logarithm: a token of weight w is given w times to the
bare language model, which is run over the whole conversation at once.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import pytest
import torch

import vtc
from tests.families import matrix, tiny, ways
from tests.families.samples import Setting
from tests.families.ways import Check
from tests.hf.tiny import snapshot
from tests.layers import models
from vtc.methods.coverage import Coverage

METHOD = Coverage(retention=0.3, proportional=True)
#: families with clips among them, M-RoPE, levels for deeper layers, sliding windows, blocks that see
#: each other
FAMILIES = ("llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3_short")
ALL = (*sorted({*tiny.FAMILIES} - {tiny.UNKNOWN}), "mistral", "gemma3_short", "gemma3_full_first")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": dict(do_sample=True, top_k=8),
    "static": dict(cache_implementation="static"),
    "no cache": dict(use_cache=False),
    "chunked prefill": dict(prefill_chunk_size=7),
    "prompt lookup": dict(prompt_lookup_num_tokens=2),
}


@functools.lru_cache(maxsize=2)
def model_of(name: str, attention: str = "sdpa") -> Any:
    model = models.build(name, attention)
    try:
        vtc.apply(model, METHOD).remove()
    except vtc.VTCError as error:  # an older transformers
        pytest.skip(str(error))
    return model


def setting(name: str, attention: str = "sdpa", positions: str = "original") -> Setting:
    return Setting(models.family_of(name), model_of(name, attention), METHOD, positions)


def videos(name: str) -> list[bool]:
    return [False, True] if "video" in tiny.FAMILIES[models.family_of(name)].kinds else [False]


def prompt(here: Setting, video: bool, side: str) -> list[Check]:
    """A forward over a padded batch."""
    samples = ways.prompts(here.family, video)
    batch = here.batch(samples, side)
    got, checks = here.model(**batch).logits, []
    for row, sample in enumerate(samples):
        length = here.short(sample).ids.shape[1]
        mine = got[row, -length:] if side == "left" else got[row, :length]
        checks.append(Check(mine, sample, None, f"row {row}"))
    return checks


def decoded(here: Setting, mode: str, video: bool, side: str = "left") -> list[Check]:
    """Every step of a decoding, by the tokens that were chosen."""
    samples = ways.prompts(here.family, video)
    parts = [[sample] for sample in samples] if mode == "prompt lookup" else [samples]
    checks = []
    for part in parts:
        batch = here.batch(part, side)
        ask = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False) | MODES[mode]
        ask |= dict(output_logits=True, return_dict_in_generate=True)
        torch.manual_seed(0)
        out = here.model.generate(**batch, **ask)
        width = batch["input_ids"].shape[1]
        logits, count = torch.stack(out.logits, 1), len(out.logits)
        for row, sample in enumerate(part):
            after = sample.then(out.sequences[row, width:].tolist())
            columns = range(len(after.ids) - count - 1, len(after.ids) - 1)
            checks.append(Check(logits[row], after, columns, f"{mode}, row {row}"))
    return checks


@pytest.mark.parametrize("name", ALL)
def test_prompts(name: str) -> None:
    here = setting(name)
    for video in videos(name):
        for side in ("left", "right"):
            with torch.no_grad():
                with here.block():
                    checks = prompt(here, video, side)
                assert any(weight > 1 for c in checks for weight in here.short(c.sample).weights)
                ways.holds(here, checks)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAMILIES)
def test_decoding(name: str, mode: str) -> None:
    here = setting(name)
    # a chunk of a block of Gemma's is read as a block of its own; 5.18 gives chunks no pictures
    blocks = name == "gemma3_short"
    if mode == "chunked prefill" and (blocks or matrix.upstream(here.family, False, mode, "left")):
        pytest.skip("the bare model cannot")
    with torch.no_grad():
        with here.block():
            checks = decoded(here, mode, videos(name)[-1])
        ways.holds(here, checks)


@pytest.mark.parametrize("way", ways.WAYS)
@pytest.mark.parametrize("name", FAMILIES)
def test_ways(name: str, way: str) -> None:
    """Turns, caches that their owner moves, packed rows, masks over pictures, threads."""
    if way in UPSTREAM[name]:
        pytest.skip("the bare model cannot")
    here = setting(name)
    sides = ("left",) if way in ways.ONE_SIDED or name == "gemma3_short" else ("left", "right")
    for side in sides:
        ways.run(here, way, videos(name)[-1], side)


#: what the bare model gets wrong (docs/support.md); Gemma's windows also count padding on the right
UPSTREAM = {
    "llava_next": (),
    "qwen2_5_vl": ("partly masked image",),
    "qwen3_vl": ("partly masked image",),
    "gemma3_short": ("packed rows", "crop", "picture turn, forward", "picture turn, generate"),
}


@pytest.mark.parametrize("ask", [{}, dict(cache_implementation="static"), dict(use_cache=False)])
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_beams(name: str, ask: dict[str, Any]) -> None:
    """The score of every beam that is returned is that of its tokens."""
    here = setting(name)
    samples = ways.prompts(here.family, False)
    ask = dict(max_new_tokens=4, min_new_tokens=4, num_beams=3, num_return_sequences=2) | ask
    ask |= dict(do_sample=False, length_penalty=0.0, output_scores=True)
    with torch.no_grad():
        with here.block():
            batch = here.batch(samples)
            out = here.model.generate(**batch, **ask, return_dict_in_generate=True)
        width, banned = batch["input_ids"].shape[1], here.model.generation_config.suppress_tokens
        for number, sequence in enumerate(out.sequences):
            sample = samples[number // 2]
            new = sequence[width:].tolist()
            logits, columns = here.alone(sample.then(new))
            steps = logits[len(columns) - 5 : -1].log_softmax(-1)
            assert not set(banned) & set(new)
            score = sum(float(step[token]) for step, token in zip(steps, new, strict=True))
            assert float(out.sequences_scores[number]) == pytest.approx(score, abs=2e-3)


@pytest.mark.parametrize("positions", ["contiguous", "regrid"])
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_positions(name: str, positions: str) -> None:
    here = setting(name, positions=positions)
    for way in ("cache=", "picture turn, generate"):
        ways.run(here, way, False, "left")


@pytest.mark.parametrize("name", ["llava_next", "gemma3_short", "qwen3_vl"])
def test_eager(name: str) -> None:
    here = setting(name, "eager")
    with torch.no_grad():
        with here.block():
            checks = prompt(here, False, "left") + decoded(here, "greedy", False)
        ways.holds(here, checks)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_one_each_changes_no_bit(name: str) -> None:
    """Where every token stands for itself, and at retention 1.0, bits are those without."""

    class Alone(Coverage):
        def select(self, batch: Any) -> Any:
            out = super().select(batch)
            return dataclasses.replace(out, weight=torch.ones_like(out.weight))

    model, batch = model_of(name), tiny.inputs(name, tiny.MIXED)
    pairs = [
        (Alone(retention=0.3), Alone(retention=0.3, proportional=True)),
        (vtc.create_method("none"), Coverage(retention=1.0, proportional=True)),
    ]
    for without, method in pairs:
        found = []
        for each in (without, method):
            with torch.no_grad(), vtc.compress(model, each):
                out = model.generate(**batch, **GREEDY)
                found.append((model(**batch).logits, out.sequences, *out.logits))
        assert all(map(torch.equal, *found))


GREEDY: dict[str, Any] = dict(max_new_tokens=4, do_sample=False, output_logits=True)
GREEDY["return_dict_in_generate"] = True


@pytest.mark.parametrize("name", FAMILIES)
def test_removal_leaves_nothing(name: str) -> None:
    model, batch = model_of(name), tiny.inputs(models.family_of(name), tiny.MIXED)
    with torch.no_grad():
        plain = model(**batch).logits
        before = left(model)
        handle = vtc.apply(model, METHOD)
        assert left(model) != before
        with_bias = model(**batch).logits
        handle.remove()
        assert left(model) == before
        assert torch.equal(model(**batch).logits, plain)
        with vtc.compress(model, Coverage(retention=0.3)):
            assert not torch.allclose(model(**batch).logits, with_bias, atol=0.1)


def left(model: Any) -> dict[str, Any]:
    """`snapshot`, without what transformers itself keeps of the last prompt."""
    found = snapshot(model)
    found["model"].pop("rope_deltas", None)
    return found


def test_gradients_with_and_without_a_checkpoint() -> None:
    """A layer that a checkpoint runs again is given the bias again."""
    here = setting("llava_next")
    model, sample = copy.deepcopy(here.model), ways.prompts(here.family, False)[0]
    grads = []
    for checkpointing in (False, True):
        twin = copy.deepcopy(model)
        if checkpointing:
            twin.gradient_checkpointing_enable({"use_reentrant": False})
        twin.train()
        with vtc.compress(twin, METHOD):
            logits = twin(**here.batch([sample]), use_cache=False).logits
            logits.float().square().mean().backward()  # transformers 5.18 runs hooks again here
        grads.append({n: p.grad for n, p in twin.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 20
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-5)
