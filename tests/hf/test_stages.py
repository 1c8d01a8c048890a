"""Several methods on one model: what is refused, and a stage that nobody has heard of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import vtc
from tests.hf import tiny
from tests.hf.methods import Norms
from tests.hf.tiny import snapshot
from vtc import VTCError
from vtc.methods.base import Method
from vtc.methods.uniform import Uniform
from vtc.plugins.hf.adapters.llava import Llava
from vtc.plugins.hf.stages import base


@dataclass
class Inside(Method):
    """Would cut tokens inside the language model."""

    layer: int = 2

    name: ClassVar[str] = "inside_the_model"
    where: ClassVar[str] = "layers"


REFUSED: dict[str, tuple[str, Callable[[nn.Module], Any]]] = {
    "two at the boundary": (
        r"method: got 'norms\+uniform', but 'norms' and 'uniform' both work .*boundary",
        lambda m: vtc.compress(m, [Norms(0.5), Uniform(0.5)]),
    ),
    "two by name": ("both work at the same place", lambda m: vtc.apply(m, "uniform+random")),
    "none": ("method: got an empty list", lambda m: vtc.apply(m, [])),
    "inside": (
        "method: 'inside_the_model' works inside the language model and is no LayerMethod",
        lambda m: vtc.compress(m, [Norms(0.5), Inside(0.5)]),
    ),
    "inside alone": ("is no LayerMethod", lambda m: vtc.apply(m, Inside(0.5))),
    "a list of something else": ("method: got a list with int", lambda m: vtc.apply(m, [7])),
    "options beside a list": (
        "retention: options go with a method's name; got list",
        lambda m: vtc.apply(m, [Norms()], retention=0.5),
    ),
    "options beside several names": (
        r"retention: options go with a method's name; got 'uniform\+random'; of several",
        lambda m: vtc.apply(m, "uniform+random", retention=0.5),
    ),
    "an unknown one of several": ("got 'unifrom'", lambda m: vtc.apply(m, "unifrom+random")),
    "a config of two": (
        "both work at the same place",
        lambda m: vtc.apply(m, vtc.CompressionConfig("uniform+random")),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_the_model_is_touched(case: str) -> None:
    message, call = REFUSED[case]
    model = tiny.build("llava-clip")
    before = snapshot(model)
    with pytest.raises(VTCError, match=message):
        call(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("family", ["llava-clip", "next-clip"])
def test_one_method_in_a_list_is_that_method(family: str) -> None:
    model, inputs = tiny.build(family), tiny.inputs(family, [[(40, 60)]])
    found = []
    for method in (Uniform(0.5), [Uniform(0.5)], (Uniform(0.5),)):
        with torch.no_grad(), vtc.compress(model, method) as run:
            found.append(model(**inputs).logits)
        assert run.reports[-1].stages == [("uniform", Uniform(0.5).settings())]
        assert run.reports[-1].method == "uniform"
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    with vtc.compress(model, ["uniform"]) as run:
        assert run.method == Uniform()


class Made:
    """A stage of a later version: notes what it is asked."""

    name: ClassVar[str] = "made_up"
    where: ClassVar[str] = "layers"
    seen: ClassVar[list[str]] = []

    def check(self, model: nn.Module, patch: Any, method: Method) -> None:
        self.seen.append(f"check {method.name}")

    def attach(self, model: nn.Module, patch: Any) -> None:
        self.seen.append("attach")

    def detach(self, model: nn.Module) -> None:
        self.seen.append("detach")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setattr(Made, "seen", [])
    monkeypatch.setattr(base, "_STAGES", dict(base._STAGES))
    base.register_stage(Made)
    monkeypatch.setattr(Llava, "stages", ("boundary", "made_up"))
    yield Made.seen


def test_a_stage_of_ones_own_beside_the_boundary(made: list[str]) -> None:
    """The others know nothing of it; methods may be given in any order."""
    model, inputs = tiny.build("llava-clip"), tiny.inputs("llava-clip", [[(40, 60)]])
    with torch.no_grad():
        bare = model(**inputs).logits
    before = snapshot(model)
    with torch.no_grad(), vtc.compress(model, Uniform(0.5)):
        want = model(**inputs).logits
    assert not made
    with torch.no_grad(), vtc.compress(model, [Inside(0.5), Uniform(0.5)]) as run:
        assert torch.equal(model(**inputs).logits, want)
    assert snapshot(model) == before
    assert made[0] == "check inside_the_model" and made[-1] == "detach" and "attach" in made
    report = run.reports[-1]
    assert report.method == "uniform+inside_the_model"
    assert [name for name, _ in report.stages] == ["uniform", "inside_the_model"]
    assert report.stages[1][1]["layer"] == 2 and report.stages[0][1]["retention"] == 0.5
    again = vtc.Report.from_dict(report.to_dict())
    assert again.stages == report.stages
    del made[:]
    handle = vtc.apply(model, [Inside(0.5)])  # alone: the prompt stays as it is
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, bare)
        with vtc.compress(model, Uniform(0.5)):  # beside it: to each its own
            assert torch.equal(model(**inputs).logits, want)
            with vtc.compress(model, Inside(0.5)) as inner:
                assert torch.equal(model(**inputs).logits, bare)
                model.generate(**inputs, max_new_tokens=2, do_sample=False)
            assert not inner.reports
    del made[2:]
    handle.remove()
    assert made == ["check inside_the_model", "attach", "detach"] and snapshot(model) == before
