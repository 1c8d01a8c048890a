"""Where attention takes no bias, or its owner forgets it: refused in words, before anything is wrong."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import vtc
from tests.families import docowl, mllama, tiny
from tests.families.test_proportional import METHOD, decoded, prompt, setting
from tests.families.ways import cache_name
from tests.hf.tiny import snapshot
from tests.layers import models
from vtc import VTCError
from vtc.methods.coverage import Coverage

GREEDY = dict(max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("value", [1, "yes", None, 0.5])
def test_a_value_that_is_none(value: Any) -> None:
    with pytest.raises(VTCError, match="proportional: got .*allowed are True and False"):
        Coverage(proportional=value)


def test_nothing_is_merged() -> None:
    with pytest.raises(VTCError, match="proportional: got True beside merge=False"):
        Coverage(merge=False, proportional=True)


@pytest.mark.parametrize("build", [mllama.build, docowl.build], ids=["mllama", "docowl"])
def test_families(build: Callable[[], Any]) -> None:
    model = build()
    before = snapshot(model)
    with pytest.raises(VTCError, match="proportional: got True, but .*allowed is False"):
        vtc.apply(model, METHOD)
    assert snapshot(model) == before


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "sdpa_paged"])
def test_attention(name: str) -> None:
    """When a method is put on, and when somebody changes the attention afterwards."""
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.ONE)
    lm = model.model.language_model
    lm.config._attn_implementation_internal = name
    before = snapshot(model)
    with pytest.raises(VTCError, match=f"the language model attends by '{name}'.*eager and sdpa"):
        vtc.apply(model, METHOD)
    assert snapshot(model) == before
    lm.config._attn_implementation_internal = "sdpa"
    with torch.no_grad(), vtc.compress(model, METHOD):
        lm.config._attn_implementation_internal = name
        with pytest.raises(VTCError, match=f"attends by '{name}'"):
            model(**batch)


def filled(model: Any, batch: dict[str, Any], kind: str = "dynamic") -> Any:
    config = model.config.get_text_config()
    cache = StaticCache(config=config, max_cache_len=99)
    cache = DynamicCache(config=config) if kind == "dynamic" else cache
    model(**batch, **{cache_name(): cache})
    return cache


def step(model: Any, cache: Any, token: int = 9) -> Tensor:
    return model(input_ids=torch.tensor([[token]]), **{cache_name(): cache}).logits


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llava", "gemma3_short", "qwen2_5_vl"])
def test_a_bare_model_does_not_go_on(name: str, kind: str) -> None:
    """Nor one under a method that knows nothing of it; a cache that was reset is like a new one."""
    model, batch = models.build(name), tiny.inputs(models.family_of(name), tiny.ONE)
    with torch.no_grad():
        with vtc.compress(model, METHOD):
            cache = filled(model, batch, kind)
        for block in (vtc.compress(model, "none"), vtc.compress(model, "pyramiddrop")):
            with block, pytest.raises(VTCError, match="stand for several patches each"):
                step(model, copy.deepcopy(cache))
        with pytest.raises(VTCError, match="stand for several patches each"):
            step(model, cache)
        cache.reset()
        want = model(input_ids=torch.tensor([[9]])).logits
        assert torch.allclose(step(model, cache), want, atol=1e-5)


def test_another_method_goes_on_where_the_model_knows_of_it() -> None:
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.ONE)
    with torch.no_grad(), vtc.compress(model, METHOD):
        cache = filled(model, batch)
        want = step(model, copy.deepcopy(cache))
        with vtc.compress(model, "uniform"):
            assert torch.equal(step(model, copy.deepcopy(cache)), want)
        assert torch.equal(step(model, through_a_file(cache)), want)


def through_a_file(cache: Any) -> Any:
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_rows_that_nobody_knows() -> None:
    model, batch = models.build("llava"), tiny.inputs("llava", [[tiny.A], [tiny.C]])
    with torch.no_grad(), vtc.compress(model, METHOD):
        cache = filled(model, batch)
        cache._vtc_held = None
        with pytest.raises(VTCError, match="holds 2 compressed prompts, the call has 3"):
            model(input_ids=torch.tensor([[5]] * 3), **{cache_name(): cache})


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_weights_without_a_logarithm(weight: float) -> None:
    class Odd(Coverage):
        def select(self, batch: Any) -> Any:
            out = super().select(batch)
            return dataclasses.replace(out, weight=torch.full_like(out.weight, weight))

    model, batch = models.build("llava"), tiny.inputs("llava", tiny.ONE)
    with torch.no_grad(), vtc.compress(model, Odd(retention=0.3, proportional=True)):
        with pytest.raises(VTCError, match="weights from .*allowed are weights above 0"):
            model(**batch)


def test_a_call_that_failed_leaves_no_bias() -> None:
    """Between the model and its language model, where the bias waits."""
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.ONE)
    lm, ids = model.model.language_model, torch.tensor([[5, 6, 7, 8]])

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with torch.no_grad():
        want = lm(input_ids=ids).last_hidden_state
        with vtc.compress(model, METHOD):
            hook = lm.embed_tokens.register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                model(**batch)
            hook.remove()
            assert torch.equal(lm(input_ids=ids).last_hidden_state, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["llava", "gemma3_short", "qwen2_5_vl"])
def test_precision(name: str, dtype: torch.dtype) -> None:
    here = setting(name)
    here.model = copy.deepcopy(here.model).to(dtype)
    with torch.no_grad():
        with here.block():
            checks = prompt(here, False, "left") + decoded(here, "greedy", False)
        for check in checks:  # `generate` makes float32 of half precision
            want, columns = here.alone(check.sample)
            if check.columns is not None:
                want = want[[sum(c <= column for c in columns) - 1 for column in check.columns]]
            off = (check.got.double() - want.double()).norm(dim=-1) / want.double().norm(dim=-1)
            assert float(off.max()) < (1e-3 if dtype == torch.float64 else 0.1), check.what


def test_autocast() -> None:
    """In rows whose choice is the same in half precision."""
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED[:2])
    found = []
    with torch.no_grad(), vtc.compress(model, METHOD) as run:
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found.append(model(**batch).logits[:, -1].float())
    kept = [[image.patch.tolist() for image in report.images] for report in run.reports]
    assert kept[0] == kept[1]
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.1


@pytest.mark.parametrize("part", ["language model", "layers"])
def test_compiled(part: str) -> None:
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED)
    ask = dict(GREEDY, cache_implementation="static")
    with torch.no_grad(), vtc.compress(model, METHOD):
        want, logits = model.generate(**batch, **ask), model(**batch).logits
        lm = model.model.language_model
        for module in [lm] if part == "language model" else lm.layers:
            module.compile(backend="eager")
        assert torch.allclose(model(**batch).logits, logits, atol=1e-4)
        assert torch.equal(model.generate(**batch, **ask), want)
        assert torch.equal(model.generate(**batch, **GREEDY), want)


def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.MIXED)
    with torch.no_grad(), vtc.compress(model, METHOD):
        want = model.generate(**batch, **GREEDY)
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        assert torch.equal(model.generate(**batch, **GREEDY), want)


def test_virtual_tokens_in_front() -> None:
    """PEFT's prefix in the cache: the bias stands behind it."""
    peft = pytest.importorskip("peft", reason="needs peft")
    model, batch = models.build("llava"), tiny.inputs("llava", tiny.ONE)
    count, seen = 3, []
    settings = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count)
    wrapped = peft.get_peft_model(model, settings).eval()
    from tests.hf.test_others_hands import generates_as_forward

    if not generates_as_forward(wrapped, batch):
        pytest.skip("upstream: PEFT's generate gives other logits than its forward")
    layer = model.model.language_model.layers[0].self_attn

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["attention_mask"][0, 0, -1])

    with torch.no_grad(), vtc.compress(wrapped, METHOD) as run:
        hook = layer.register_forward_pre_hook(note, with_kwargs=True)
        wrapped.generate(**batch, **GREEDY)
        hook.remove()
    image = run.reports[0].images[0]
    at = batch["input_ids"][0].tolist().index(tiny.IMAGE)
    for mask in seen:
        found = mask.nonzero().squeeze(1)
        assert len(found) and int(found.min()) >= count + at
        assert int(found.max()) < count + at + image.tokens_after
