"""On an untested version of transformers the first model of a family waits for a check."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import vtc
from tests.families import tiny as families
from tests.hf import tiny
from vtc.plugins import hf
from vtc.plugins.hf import cache, selfcheck
from vtc.plugins.hf import tiny as small
from vtc.plugins.hf.checks import agreement
from vtc.plugins.hf.checks.outcome import Found, NotRun
from vtc.plugins.hf.checks.subject import Subject, tiny_subject


@pytest.fixture(autouse=True)
def nothing_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "_FOUND", {})


@pytest.fixture
def untested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "TESTED", ("4.0", "4.1"))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were checked."""
    seen: list[str] = []
    check = agreement.decoding

    def noted(subject: Subject) -> Found:
        seen.append(subject.name)
        return check(subject)

    monkeypatch.setattr(agreement, "decoding", noted)
    return seen


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformers whose cache has a name that the plug-in does not know, as 5.24's once was."""
    monkeypatch.setattr(cache, "NAMES", ("kv_store",))


def test_tested_versions_cost_nothing(runs) -> None:
    vtc.apply(tiny.build("llava-clip"), "uniform")
    assert runs == [] and selfcheck._FOUND == {}


def test_once_a_family(untested, runs) -> None:
    model, other = tiny.build("llava-clip"), tiny.build("next-clip")
    for each in (model, model, tiny.build("llava-siglip"), other, other):
        vtc.apply(each, "uniform")
    assert runs == ["LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration"]


def test_a_wrong_one_is_refused(untested, broken, runs) -> None:
    model = tiny.build("llava-clip")
    before = tiny.snapshot(model)
    for _ in range(2):
        with pytest.raises(vtc.VTCError) as error:
            vtc.apply(model, "uniform")
        assert "with a cache is not what one pass over the whole text" in str(error.value)
        assert "vtc doctor" in str(error.value) and "4.0 to 4.1" in str(error.value)
        assert tiny.snapshot(model) == before
    assert len(runs) == 1


def test_where_no_tiny_model_can_be_made(untested, broken, runs, monkeypatch) -> None:
    """A tiny LLaVA stands in; where that fails too, a warning says so."""

    def refuse(*_: Any) -> Any:
        raise TypeError("not such sizes")

    monkeypatch.setattr(small, "same_family", refuse)
    with pytest.raises(vtc.VTCError, match="with a cache is not"):
        vtc.apply(tiny.build("next-clip"), "uniform")
    monkeypatch.setattr(small, "build", refuse)
    with pytest.warns(UserWarning, match="no tiny LlavaForConditionalGeneration"):
        vtc.apply(tiny.build("llava-clip"), "uniform")


def test_threads_wait_for_one_check(untested, runs) -> None:
    model, errors = tiny.build("llava-clip"), []
    start = threading.Barrier(4)

    def apply() -> None:
        start.wait()
        try:
            selfcheck.check_once(model)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=apply) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(runs) == 1


FAMILIES = pytest.mark.parametrize("family", [*families.FAMILIES])


@FAMILIES
def test_the_caller_notices_nothing(family, untested, caplog) -> None:
    """Random numbers, modes and defaults stay, and nothing is warned of or logged that the model does
    not log by itself, which transformers does once a process."""
    caplog.set_level(logging.WARNING)
    model = families.build(family)
    with contextlib.suppress(ValueError):  # an older Video-LLaVA knows its pixels by another name
        model.generate(**families.inputs(family, families.ONE), max_new_tokens=1)
    caplog.clear()
    torch.set_default_dtype(torch.bfloat16)
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
            if family != families.UNKNOWN:  # of whom `apply` warns as well
                warnings.simplefilter("error")
            selfcheck.check_once(model)
            assert torch.get_default_dtype() == torch.bfloat16
            assert torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (str(np.random.get_state()), random.getstate())
    assert threads == torch.get_num_threads() and caplog.records == []
    assert not hasattr(model, "_vtc")


@FAMILIES
def test_a_tiny_model_of_the_same_family(family) -> None:
    """Of the same class, and the check does run on it."""
    model = families.build(family)
    try:  # older versions have families that vtc refuses
        vtc.apply(model, "uniform").remove()
    except vtc.VTCError as error:
        pytest.skip(str(error))
    made = small.same_family(model)
    assert type(made) is type(model)
    assert sum(p.numel() for p in made.parameters()) < small._MOST
    subject = tiny_subject(family, made)
    if family == "paligemma":  # reads its own answer in both directions, where there is no cache
        with pytest.raises(NotRun, match="differently with and without a cache"):
            agreement.decoding(subject)
    else:
        apart = agreement.decoding(subject).apart
        assert apart is not None and apart < 1e-4
    assert agreement.batches(subject).apart < 1e-4


def test_whoever_checks_is_not_checked(untested, runs) -> None:
    with selfcheck.checking():
        vtc.apply(tiny.build("llava-clip"), "uniform")
    assert runs == []
