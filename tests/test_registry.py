"""A name belongs to one module: nothing that is registered disappears behind another's back."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import vtc
from vtc import published
from vtc.discrete import plans, quantizers, samplers
from vtc.errors import VTCError
from vtc.methods.random import Random
from vtc.plugins.hf.adapters import base
from vtc.registry import _METHODS, create_method, list_methods, method_class, register

METHOD = """
from dataclasses import dataclass
from typing import ClassVar
import vtc

@vtc.register_method
@dataclass
class {cls}(vtc.Method):
    "A user's own."
    name: ClassVar[str] = "{name}"
    mark: ClassVar[str] = "{mark}"
"""


@pytest.fixture(autouse=True)
def put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Modules can be written to a folder on the path; tables are as before afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    tables = (_METHODS.made, plans.PLANS, quantizers.QUANTIZERS, samplers.SAMPLERS, base._ADAPTERS)
    before = [dict(table) for table in tables]
    modules = set(sys.modules)
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
    for name in set(sys.modules) - modules:
        if name.startswith("users_"):
            del sys.modules[name]


def module(folder: Path, at: str, **values: str) -> ModuleType:
    (folder / f"{at}.py").write_text(METHOD.format(**{"mark": "", **values}))
    importlib.invalidate_caches()
    if at in sys.modules:
        return importlib.reload(sys.modules[at])
    return importlib.import_module(at)


@pytest.mark.parametrize("cls", ["Random", "Other"])
def test_a_built_in_is_not_replaced(tmp_path: Path, cls: str) -> None:
    """Of the same class name or another: the error names both modules."""
    with pytest.raises(
        VTCError,
        match=rf"^name: 'random' is already registered by vtc\.methods\.random\.Random, so "
        rf"users_one\.{cls} needs another name",
    ):
        module(tmp_path, "users_one", cls=cls, name="random")
    assert method_class("random") is Random


def test_nor_is_another_user_s(tmp_path: Path) -> None:
    first = module(tmp_path, "users_one", cls="Mine", name="users")
    with pytest.raises(VTCError, match=r"users_one\.Mine, so users_two\.Mine"):
        module(tmp_path, "users_two", cls="Mine", name="users")
    assert method_class("users") is first.Mine
    module(tmp_path, "users_two", cls="Mine", name="users_too")


def test_a_module_may_be_read_again(tmp_path: Path) -> None:
    """Reloaded, imported anew, or run as a script beside: it is its own successor."""
    module(tmp_path, "users_one", cls="Mine", name="users", mark="first")
    again = module(tmp_path, "users_one", cls="Mine", name="users", mark="second, and longer")
    assert method_class("users") is again.Mine and again.Mine.mark.startswith("second")
    del sys.modules["users_one"]
    anew = module(tmp_path, "users_one", cls="Mine", name="users", mark="third")
    assert method_class("users") is anew.Mine is not again.Mine
    vtc.register_method(anew.Mine)
    script: dict[str, Any] = {"__name__": "users_main"}
    sys.modules["users_main"] = ModuleType("users_main")
    sys.modules["users_main"].__file__ = anew.__file__
    exec(Path(str(anew.__file__)).read_text(), script)  # what `python users_one.py` does
    assert method_class("users") is script["Mine"]


def test_tables_of_discrete_keep_their_entries() -> None:
    def raster(grid: tuple[int, int]) -> plans.Plan:
        return plans.raster(grid)

    raster.__qualname__ = "raster"  # as at the top of a user's module
    with pytest.raises(
        VTCError,
        match=r"'raster' is already registered by vtc\.discrete\.plans\.raster, so "
        r"tests\.test_registry\.raster",
    ):
        register(plans.PLANS, "raster")(raster)
    register(plans.PLANS, "users_raster")(raster)
    register(plans.PLANS, "users_raster")(raster)
    vq = type("VectorQuantizer", (), {"__module__": "users_x"})
    vq.__qualname__ = quantizers.QUANTIZERS["vq"].__qualname__
    with pytest.raises(VTCError, match=r"already registered by vtc\.discrete.*so users_x\."):
        register(quantizers.QUANTIZERS, "vq")(vq)
    with pytest.raises(VTCError, match=r"'ar' is already registered by vtc\.discrete\.samplers"):
        register(samplers.SAMPLERS, "ar")(functools.partial(samplers.sample_maskgit, steps=2))
    register(samplers.SAMPLERS, "users_quick")(functools.partial(samplers.sample_maskgit, steps=2))


def test_an_adapter_keeps_its_classes() -> None:
    own = type("Llava", (base.Adapter,), {"__module__": "users_x"})
    known = base._ADAPTERS["LlavaForConditionalGeneration"]
    with pytest.raises(VTCError, match=r"^adapter: 'LlavaForConditional.*so users_x\.Llava"):
        base.register_adapter("LlavaForConditionalGeneration")(own)
    assert base._ADAPTERS["LlavaForConditionalGeneration"] is known
    base.register_adapter("UsersOwnForConditionalGeneration")(own)


@pytest.mark.parametrize(
    "name, why",
    [
        ("AIM", "whole attention maps"),
        ("fit_prune", "whole attention maps"),
        ("topv", "no public code"),
        ("ivc-prune", "has not been written yet"),
    ],
)
def test_published_methods_that_are_not_here_are_known(name: str, why: str) -> None:
    """The usual error, and what stands in the way; until somebody registers one."""
    for ask in (create_method, method_class):
        with pytest.raises(
            VTCError, match=r"^method: got .*, available are .*random.*\. vtc"
        ) as error:
            ask(name)
        assert "does not have it: it " in str(error.value) and why in str(error.value)
    with pytest.raises(VTCError) as error:
        create_method("fastvv")
    assert "vtc knows" not in str(error.value)
    assert not set(published.KNOWN) & set(list_methods())


def test_other_names_lead_to_methods() -> None:
    for name in ("pdrop", "PDrop", "SparseVLMs"):
        with pytest.raises(VTCError, match=r"^method: got .*\. vtc calls it '\w+'$"):
            create_method(name)
    assert set(published.OTHER_NAMES.values()) <= set(list_methods())


def test_a_method_of_a_known_name_can_be_registered(tmp_path: Path) -> None:
    module(tmp_path, "users_topv", cls="TopV", name="topv")
    assert create_method("topv").name == "topv"
