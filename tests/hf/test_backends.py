"""A plug-in of another package takes the models of its library, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import vtc
from tests.hf import tiny
from vtc import VTCError, doors
from vtc.plugins import backends


class Engine:
    """A model that is none of PyTorch's."""


class Made:
    """A backend: notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def takes(self, model: Any) -> bool:
        return isinstance(model, Engine)

    def plan(self, model: Any, method: Any, **options: Any) -> Any:
        self.calls.append(("plan", (method, options)))
        return "planned"

    def apply(self, model: Any, method: Any, **options: Any) -> Any:
        self.calls.append(("apply", (method, options)))
        return "applied"

    def remove(self, model: Any) -> None:
        self.calls.append(("remove", None))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Name -> what the entry point of that name loads, an exception to be raised."""
    found: dict[str, Any] = {}

    def load(name: str) -> Any:
        if isinstance(found[name], Exception):
            raise found[name]
        return found[name]

    def entry_points(group: str) -> list[Any]:
        return [
            SimpleNamespace(
                name=name, value=f"{name}:backend", load=lambda name=name: load(name), dist=None
            )
            for name in (found if group == "vtc.plugins" else ())
        ]

    monkeypatch.setattr(doors.metadata, "entry_points", entry_points)
    for cached in (doors.entries, backends._installed):
        cached.cache_clear()
    yield found
    for cached in (doors.entries, backends._installed):
        cached.cache_clear()


def test_a_backend_takes_its_models_and_transformers_the_rest(installed: dict[str, Any]) -> None:
    mine = installed["mine"] = Made()
    model = Engine()
    options = {"processor": None, "positions": "regrid", "retention": 0.5}
    assert vtc.compress(model, "uniform", positions="regrid", retention=0.5) == "planned"
    assert vtc.apply(model, "uniform", positions="regrid", retention=0.5) == "applied"
    vtc.remove(model)
    assert mine.calls == [
        ("plan", ("uniform", options)),
        ("apply", ("uniform", options)),
        ("remove", None),
    ]
    theirs = tiny.build("llava-clip")
    vtc.apply(theirs, "uniform", retention=0.5)
    vtc.remove(theirs)
    assert len(mine.calls) == 3 and not hasattr(theirs, "_vtc")
    with pytest.raises(VTCError, match="model: got int"):
        vtc.apply(3, "uniform")


def test_a_broken_one_stops_nobody(installed: dict[str, Any]) -> None:
    installed["broken"], installed["mine"] = ImportError("no such library"), Made()
    with pytest.warns(RuntimeWarning, match="cannot load 'broken:backend' of .*: no such"):
        assert vtc.apply(Engine(), "uniform") == "applied"


def test_transformers_is_a_backend() -> None:
    model = tiny.build("llava-clip")
    found = backends.backend_for(model)
    assert found.takes(model) and not found.takes(Engine())
