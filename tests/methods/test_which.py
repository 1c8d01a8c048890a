"""What methods read is said once, and messages name those that the registry has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

import vtc
from tests.families import tiny
from tests.methods.images import METHODS, image, make
from vtc import SignalRequest, VisualTokens, VTCError, registry
from vtc.methods.base import Method
from vtc.methods.tokenflex import TokenFlex
from vtc.methods.which import quoted, which, without_cls, without_signals


@dataclass
class Blind(Method):
    """Reads nothing."""

    name: ClassVar[str] = "blind"


@dataclass
class Attentive(Method):
    """Reads attention, has a stand-in."""

    name: ClassVar[str] = "attentive"
    signals: ClassVar[tuple[str, ...]] = ("cls_attention",)


@dataclass
class Needy(Method):
    """Cannot be made without an option."""

    part: Any = None
    name: ClassVar[str] = "needy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part is None:
            raise VTCError("part: got None")


@dataclass
class OnlyCls(Method):
    """Needs a CLS token."""

    name: ClassVar[str] = "only_cls"
    signals: ClassVar[tuple[str, ...]] = ("cls_query",)
    without_cls: ClassVar[Mapping[str, str]] = {}


@pytest.fixture
def others(monkeypatch: Any) -> None:
    """A registry with other methods."""
    table = {cls.name: cls for cls in (Blind, Attentive, Needy, OnlyCls)}
    monkeypatch.setattr(registry, "_METHODS", table)


def test_built_in_methods_by_what_they_need() -> None:
    assert {"divprune", "pool", "random", "uniform"} <= set(without_signals())
    assert {"globalcom2", "recoverable", "token_correlation", "scope"} <= set(without_cls())
    assert not set(without_signals()) & set(without_cls())
    assert "tokenflex" not in which(lambda method: True), "it needs a projector"
    assert [quoted(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "none",
        "'a'",
        "'a' and 'b'",
        "'a', 'b' and 'c'",
    ]


def test_messages_name_what_is_registered(others: None) -> None:
    assert (without_signals(), without_cls()) == (["blind"], ["attentive"])
    with pytest.raises(
        VTCError, match="needs cls_query, .* no CLS token; 'attentive' work without"
    ):
        OnlyCls().requests(has_cls=False)
    family = "llava_onevision_shrunk"
    model, batch = tiny.build(family), tiny.inputs(family, [[tiny.A]])
    with vtc.compress(model, TokenFlex(retention=0.5, projector=tiny.projector(model))):
        with pytest.raises(VTCError, match="patches are no rectangle; 'blind' can work on it"):
            model(**batch)
    model, batch = tiny.build(tiny.UNKNOWN), tiny.inputs(tiny.UNKNOWN, [[tiny.A]])
    with pytest.warns(UserWarning), vtc.compress(model, Attentive(retention=0.5)):
        with pytest.raises(VTCError, match="needs an adapter; 'blind' work without"):
            model(**batch)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("has_cls", [True, False])
def test_signals_are_those_of_the_requests(name: str, has_cls: bool) -> None:
    method = make(name)
    kinds = list(dict.fromkeys(r.kind for r in method.requests().values()))
    assert list(method.signals) == list(registry.method_class(name).signals) == kinds
    # and nothing else is read
    tokens = image(crops=(2, 2), has_cls=has_cls)
    asked = {key: tokens.signals[key] for key in method.requests(has_cls)}
    only = VisualTokens(tokens.features, (8, 8), (2, 2), tokens.image_size, signals=asked)
    assert len(make(name, retention=0.3).compress(only)) > 0


def test_signals_follow_the_options() -> None:
    similar = vtc.create_method("recoverable", text_score="similarity")
    assert similar.signals == ("cls_query", "keys", "text_similarity")
    assert vtc.create_method("globalcom2", score="probabilities").signals == ("cls_attention",)

    @dataclass
    class Own(Method):
        name: ClassVar[str] = "own"

        def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
            return {"here": SignalRequest("keys", 0), "there": SignalRequest("keys", -1)}

    assert Own.signals == Own().signals == ("keys",) and Method.signals == ()


def test_the_way_out_is_named_where_there_is_no_text_tower() -> None:
    for family in ("internvl", "qwen2_vl", "llava"):
        with pytest.raises(VTCError, match=r"text_encoder: got None.*text_score='similarity'"):
            vtc.apply(tiny.build(family), "recoverable", question="what")
