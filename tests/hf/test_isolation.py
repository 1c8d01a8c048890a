"""Patches come and go in any order, and models do not see each other."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import nn

import vtc
from tests.device import DEVICE
from tests.hf import by_hand, tiny
from tests.hf.methods import KINDS, Attended, Norms, Pairs, Ragged

NEW = 4
GREEDY = dict(max_new_tokens=NEW, do_sample=False)
FAMILIES = pytest.mark.parametrize("family", tiny.FAMILIES)


def count(model: nn.Module) -> int:
    """How many of our hooks and configs are on the model."""
    hooks = [h for m in model.modules() for h in m._forward_pre_hooks.values()]
    hooks += [h for m in model.modules() for h in m._forward_hooks.values()]
    configs = [
        m.config for m in model.modules() if hasattr(getattr(m, "config", None), "vtc_layer")
    ]
    return sum("vtc" in h.__module__ for h in hooks) + len(configs)


def expected(model: nn.Module, batch: dict[str, Any], method: Any) -> list[list[int]]:
    """The reference's tokens of every row."""
    return [by_hand.greedy(model, row, NEW)[0] for row in by_hand.rows(model, batch, method)]


def tokens(model: nn.Module, batch: dict[str, Any]) -> list[list[int]]:
    """What the model generates."""
    return model.generate(**batch, **GREEDY)[:, -NEW:].tolist()


@FAMILIES
def test_applying_again_replaces(family: str) -> None:
    """The last method counts, hooks do not pile up, one removal is enough."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    tokens(model, batch)
    before = tiny.snapshot(model)
    first = vtc.apply(model, Attended(0.5))
    hooks = count(model)
    for _ in range(3):
        last = vtc.apply(model, Attended(0.3))
    assert count(model) == hooks
    assert not first.active and last.active
    assert tokens(model, batch) == expected(model, batch, Attended(0.3))
    first.remove()
    assert last.active, "an old handle does not take off a newer patch"
    vtc.remove(model)
    assert tiny.snapshot(model) == before
    last.remove()
    vtc.remove(model)
    assert tiny.snapshot(model) == before and not last.active


@FAMILIES
def test_nested_blocks_put_back_the_outer_one(family: str) -> None:
    """Leaving a block restores the patch that was there, also by an exception."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    tokens(model, batch)
    before = tiny.snapshot(model)
    want = {name: expected(model, batch, KINDS[name]) for name in ("norms", "attended", "pairs")}
    base = vtc.apply(model, KINDS["norms"])
    held = tiny.snapshot(model).keys()
    with vtc.compress(model, KINDS["attended"]) as outer:
        assert tokens(model, batch) == want["attended"]
        with pytest.raises(ZeroDivisionError), vtc.compress(model, KINDS["pairs"]) as inner:
            assert tokens(model, batch) == want["pairs"]
            raise ZeroDivisionError
        assert outer.active and not inner.active
        assert tokens(model, batch) == want["attended"]
    assert base.active and tokens(model, batch) == want["norms"]
    assert len(base.reports) == 1 and len(outer.reports) == 2 and len(inner.reports) == 1
    assert tiny.snapshot(model).keys() == held
    base.remove()
    assert tiny.snapshot(model) == before


@pytest.mark.parametrize("inside", ["remove", "apply", "handle"])
def test_leaving_a_block_after_changes_inside(inside: str) -> None:
    """Whatever happens to the patch inside, leaving puts back what was there on entering."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.ONE)
    outer = vtc.apply(model, Norms(0.5))
    with vtc.compress(model, Attended(0.5)) as run:
        if inside == "remove":
            vtc.remove(model)
        elif inside == "handle":
            run.remove()
        else:
            vtc.apply(model, Pairs(0.5))
    assert outer.active
    assert tokens(model, batch) == expected(model, batch, Norms(0.5))
    vtc.remove(model)
    assert count(model) == 0


@pytest.mark.parametrize("off", ["block", "remove", "replaced"])
def test_a_handle_can_be_entered_again(off: str) -> None:
    """A block compresses whatever became of the patch before it, and puts back what it found."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.ONE)
    want, plain = expected(model, batch, Attended(0.5)), tokens(model, batch)
    before = tiny.snapshot(model)
    run, newer = vtc.compress(model, Attended(0.5)), None
    if off == "block":
        with run:
            pass
    elif off == "remove":
        run.remove()
    else:
        newer = vtc.apply(model, Norms(0.5))
    for times in (1, 2):
        with run as entered:
            assert entered.active and tokens(model, batch) == want
        assert len(run.reports) == times and not run.active
        assert newer is None or newer.active
    vtc.remove(model)
    assert tiny.snapshot(model) == before and tokens(model, batch) == plain


def test_two_models_do_not_see_each_other() -> None:
    """Patches on two models, in turns; the untouched third stays bare."""
    models = [tiny.build("next-clip", seed=s) for s in (0, 1, 2)]
    batch = tiny.inputs("next-clip", tiny.MIXED)
    plain = tokens(models[2], batch)
    want = [
        expected(m, batch, k) for m, k in zip(models, (Norms(0.5), Attended(0.3)), strict=False)
    ]
    first = vtc.apply(models[0], Norms(0.5))
    second = vtc.apply(models[1], Attended(0.3))
    for _ in range(2):
        assert [tokens(models[0], batch), tokens(models[1], batch)] == want
        assert tokens(models[2], batch) == plain
    assert len(first.reports) == len(second.reports) == 2
    first.remove()
    assert tokens(models[1], batch) == want[1]


def _in_threads(work: list[Any]) -> list[Any]:
    """Run callables at the same time; results or the first exception."""
    out: list[Any] = [None] * len(work)
    start = threading.Barrier(len(work))

    def run(index: int) -> None:
        start.wait()
        try:
            out[index] = work[index]()
        except BaseException as error:  # noqa: BLE001
            out[index] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for item in out:
        if isinstance(item, BaseException):
            raise item
    return out


def test_threads_on_two_models() -> None:
    """Two threads, two models, two methods, many calls at the same time."""
    families, kinds = ("next-clip", "llava-siglip"), (Attended(0.3), Ragged())
    models = [tiny.build(f) for f in families]
    batches = [tiny.inputs(f, tiny.MIXED) for f in families]
    want = [expected(m, b, k) for m, b, k in zip(models, batches, kinds, strict=True)]
    handles = [vtc.apply(m, k) for m, k in zip(models, kinds, strict=True)]

    def work(index: int) -> list[Any]:
        return [tokens(models[index], batches[index]) for _ in range(6)]

    out = _in_threads([lambda: work(0), lambda: work(1)])
    assert out == [[want[0]] * 6, [want[1]] * 6]
    assert [len(h.reports) for h in handles] == [6, 6]


@pytest.mark.parametrize("method", [Norms(0.5), Attended(0.5)], ids=lambda m: m.name)
def test_threads_on_one_model(method: Any) -> None:
    """Calls on the same model at the same time are right too, and its layers all come back."""
    model = tiny.build("next-clip")
    batches = [tiny.inputs("next-clip", tiny.MIXED, seed=s) for s in range(3)]
    layers = model.model.vision_tower.encoder.layers
    want = [expected(model, batch, method) for batch in batches]
    handle = vtc.apply(model, method)
    work = [lambda b=b: [tokens(model, b) for _ in range(6)] for b in batches]
    assert _in_threads(work) == [[w] * 6 for w in want]
    handle.remove()
    assert model.model.vision_tower.encoder.layers is layers and len(layers) == 4


@pytest.mark.parametrize("kind", ["norms", "attended"])
@FAMILIES
def test_a_deep_copy_uses_its_own_weights(family: str, kind: str) -> None:
    """The copy is patched like the original, computes with its own weights, comes off alone."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    tokens(model, batch)
    before = tiny.snapshot(model)
    handle = vtc.apply(model, KINDS[kind])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.9)
    for each in (model, twin):
        assert tokens(each, batch) == expected(each, batch, KINDS[kind])
    assert tokens(model, batch) != tokens(twin, batch)
    seen = len(handle.reports)
    tokens(twin, batch)
    assert len(handle.reports) == seen
    vtc.remove(twin)
    assert count(twin) == 0 and "_vtc" not in vars(twin) and "generate" not in vars(twin)
    attention = twin.model.vision_tower.encoder.layers[-2].self_attn
    assert attention.config is twin.model.vision_tower.encoder.layers[0].self_attn.config
    assert tokens(model, batch) == expected(model, batch, KINDS[kind]) and handle.active
    handle.remove()
    assert tiny.snapshot(model) == before


@pytest.mark.parametrize("kind", ["norms", "attended"])
@pytest.mark.parametrize("family", ["llava-siglip", "next-clip"])
def test_a_pickled_model_stays_patched(family: str, kind: str) -> None:
    """Pickling keeps the patch whole: forward and generate compress, removal works."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    want = tokens(tiny.build(family), batch)
    vtc.apply(model, KINDS[kind])
    buffer = io.BytesIO()
    torch.save(model, buffer)  # before its first run: transformers' own recorder cannot be pickled
    buffer.seek(0)
    for twin in (pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert tokens(twin, batch) == tokens(model, batch)
        with torch.no_grad():
            assert torch.equal(twin(**batch).logits, model(**batch).logits)
        vtc.remove(twin)
        assert count(twin) == 0 and tokens(twin, batch) == want


@FAMILIES
def test_saving_a_patched_model(family: str, tmp_path: Any) -> None:
    """`save_pretrained` writes the bare model: same files, and loading gives the bare outputs."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    want = tokens(model, batch)
    model.save_pretrained(tmp_path / "bare")
    with vtc.compress(model, Attended(0.5)):
        model.save_pretrained(tmp_path / "patched")
        keys = list(model.state_dict())
    for file in (tmp_path / "bare").iterdir():
        assert file.read_bytes() == (tmp_path / "patched" / file.name).read_bytes()
    loaded = type(model).from_pretrained(tmp_path / "patched", attn_implementation="sdpa")
    loaded = loaded.to(DEVICE).eval()
    assert list(loaded.state_dict()) == keys == list(model.state_dict())
    assert count(loaded) == 0 and tokens(loaded, batch) == want


def test_moving_and_casting_a_patched_model() -> None:
    """`model.to(dtype)` after apply works and removal is complete."""
    model = tiny.build("next-clip")
    vtc.apply(model, Attended(0.5))
    model.to(torch.float64)
    batch = tiny.inputs("next-clip", tiny.ONE, dtype=torch.float64)
    (row,) = by_hand.rows(model, batch, Attended(0.5))
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits[0], by_hand.logits(model, row))
    vtc.remove(model)
    assert count(model) == 0


@pytest.mark.parametrize("family", ["llava-clip", "next-siglip", "vipllava"])
def test_the_inner_model_alone(family: str) -> None:
    """The model without a head can be compressed as well."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED, side="right")
    with torch.no_grad():
        short = by_hand.rows(model, batch, Norms(0.5))
        with vtc.compress(model.model, Norms(0.5)):
            hidden = model.model(**batch).last_hidden_state
            for row, got in zip(short, hidden, strict=True):
                logits = model.lm_head(got[: len(row.ids)])
                torch.testing.assert_close(logits, by_hand.logits(model, row), atol=1e-4, rtol=1e-4)
    assert count(model) == 0


def test_reports_do_not_grow_for_ever() -> None:
    """A server that runs for long keeps the last thousand reports."""
    model, batch = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.ONE)
    with torch.no_grad(), vtc.compress(model, Norms(0.1)) as run:
        model(**batch)
        run.reports.extend(run.reports * 1200)
        model(**batch)
    assert len(run.reports) == 1000
