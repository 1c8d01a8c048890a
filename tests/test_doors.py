"""Parts of others: packages with entry points, loose modules and files, and what is wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vtc
from tests import others
from vtc import doors, registry
from vtc.errors import VTCError
from vtc.eval import suites


@pytest.fixture(autouse=True)
def put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder is on the path; tables and modules are as before afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VTC_IMPORT", raising=False)
    with others.forgotten():
        yield


def install(
    folder: Path, name: str, cls: str = "Norm", dist: str = "others", **sources: str
) -> None:
    """A package whose entry point `name` is a class of the module `others_DIST`."""
    module = f"others_{dist}"
    source = sources.get("source", others.method(cls=cls, name=name))
    point = {"vtc.methods": {name: f"{module}:{cls}"}}
    others.install(folder, f"{dist}-dist", {module: source}, point)


def test_the_names_of_vtc_are_known_without_importing() -> None:
    """They are what is registered once everything is imported."""
    import vtc.methods  # noqa: F401

    own = registry._METHODS.own
    assert own == {n for n, c in registry._METHODS.made.items() if c.__module__[:4] == "vtc."}
    for name in own:
        assert vtc.create_method(name).name == name
    assert all(suites.suite_class(name).name == name for name in suites._SUITES.own)
    assert len(suites._SUITES.own) >= 15


@pytest.mark.parametrize("registered", [False, True])
def test_a_package_is_imported_when_its_method_is_asked_for(
    tmp_path: Path, registered: bool
) -> None:
    install(tmp_path, "others_norm", source=others.method(registered=registered))
    assert vtc.create_method("random").name == "random"
    assert "others_others" not in sys.modules
    method = vtc.create_method("others_norm", sign=-1, retention=0.5)
    assert (method.name, method.settings()["sign"]) == ("others_norm", -1)
    assert "others_norm" in vtc.list_methods("others*")
    cls = registry.method_class("others_norm")
    assert doors.where(doors.METHODS, "others_norm", cls) == "others-dist 1.5"
    assert doors.where(doors.METHODS, "random", registry.method_class("random")) == "vtc"


def test_a_suite_of_a_package(tmp_path: Path) -> None:
    point = {"vtc.suites": {"others_colours": "others_suite:Colours"}}
    others.install(tmp_path, "others-dist", {"others_suite": others.suite()}, point)
    assert "others_colours" in suites.list_suites()
    assert len(suites.create_suite("others_colours").items()) == 2


BROKEN = [
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("Norm = 3", "is no class derived from vtc.methods.base.Method"),
    (
        others.method(name="others_fast"),
        "has the name 'others_fast', the entry point 'others_norm'",
    ),
    ("", "AttributeError"),
]


@pytest.mark.parametrize("source, message", BROKEN)
def test_a_broken_package_stands_in_nobody_s_way(tmp_path: Path, source: str, message: str) -> None:
    """It is named where it is asked for and warned about in lists; everything else works."""
    install(tmp_path, "others_norm", source=source)
    with pytest.raises(VTCError, match="'others_others:Norm' of others-dist 1.5") as raised:
        vtc.create_method("others_norm")
    assert message in str(raised.value)
    with pytest.warns(RuntimeWarning, match="others-dist 1.5"):
        assert vtc.list_methods() == sorted(registry._METHODS.own)
    assert vtc.create_method("uniform").name == "uniform"


def test_a_clash_names_both_modules(tmp_path: Path) -> None:
    """With a method of vtc, with one that a script registers, and with another package."""
    install(tmp_path, "random")
    with pytest.raises(VTCError, match=r"vtc\.methods\.random\.Random, so others_others\.Norm"):
        vtc.create_method("random")
    with pytest.warns(RuntimeWarning, match="others-dist 1.5"):
        assert "random" not in vtc.list_methods()
    install(tmp_path, "others_two", dist="two")
    doors.entries.cache_clear()

    @vtc.register_method
    class Own(vtc.Method):
        name = "others_two"

    with pytest.raises(VTCError, match=r"test_doors\..*Own, so others_two\.Norm needs another"):
        vtc.create_method("others_two")
    for dist in ("three", "four"):
        install(tmp_path, "others_same", dist=dist)
    doors.entries.cache_clear()
    with pytest.raises(VTCError, match=r"'others_(three|four):Norm' of .*-dist 1.5 and 'others_"):
        vtc.create_method("others_same")


def test_a_script_does_not_take_the_name_of_what_is_not_imported_yet(tmp_path: Path) -> None:
    registry._METHODS.made.pop("random", None)
    own = type("Random", (vtc.Method,), {"name": "random", "__module__": "others_x"})
    with pytest.raises(VTCError, match=r"vtc\.methods\.random\.Random, so others_x\.Random"):
        vtc.register_method(own)


@pytest.mark.parametrize("place", ["others_loose", "others_loose.py", "{folder}/others_loose.py"])
def test_a_loose_module_or_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "others_loose.py").write_text(others.method(registered=True))
    (tmp_path / "others_more.py").write_text(others.suite(registered=True))
    monkeypatch.setenv("VTC_IMPORT", f"{place}, others_more".format(folder=tmp_path))
    assert "others_loose" not in sys.modules
    assert "others_norm" in vtc.list_methods()
    cls = registry.method_class("others_norm")
    assert doors.where(doors.METHODS, "others_norm", cls) == str(tmp_path / "others_loose.py")
    assert "others_colours" in suites.list_suites()
    doors.import_all("import", ["others_loose.py"])  # the same file again is no clash


ASKED = [
    ("no_such_module", r"^VTC_IMPORT: cannot import 'no_such_module': ModuleNotFoundError"),
    ("no_such_file.py", r"^VTC_IMPORT: cannot import 'no_such_file.py': No such file"),
    ("others_bad.py", r"cannot import 'others_bad.py': ZeroDivisionError: division by zero"),
    ("json.py", r"there is a module 'json' already, give the file another name"),
    ("others_clash.py", r"already registered by vtc\.methods\.pool\.Pool, so others_clash\.Norm"),
    ("others-file", r"; a file is given as 'others-file.py'"),
]


@pytest.mark.parametrize("place, message", ASKED)
def test_what_cannot_be_imported_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    """Again and again, not only the first time."""
    here = tmp_path / "here"  # not on the path
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "others_bad.py").write_text("1 / 0")
    (here / "json.py").write_text("")
    (here / "others-file.py").write_text("")
    (here / "others_clash.py").write_text(others.method(name="pool", registered=True))
    monkeypatch.setenv("VTC_IMPORT", place)
    for _ in range(2):
        with pytest.raises(VTCError, match=message):
            vtc.list_methods()
