"""Doors for the parts of others: installed packages name theirs, loose modules and files are asked for.

A package lists a part under its name, in a group of its metadata; the value is the class:

    [project.entry-points."vtc.methods"]
    feature_norm = "my_package.feature_norm:FeatureNorm"

It is imported when that name is asked for. What is in no package, modules and files, is imported by
`VTC_IMPORT=my_module,my_file.py` or `--import` of a command, and registers itself with a decorator such
as `vtc.register_method`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from vtc.errors import VTCError

#: a method, a suite, a way to put compression on models of a library
METHODS, SUITES, PLUGINS = "vtc.methods", "vtc.suites", "vtc.plugins"
#: names modules and files to import, with commas between them
VARIABLE = "VTC_IMPORT"

_IMPORTED: set[str] = set()
_LOCK = threading.RLock()


# -- installed packages ------------------------------------------------------------------------


@cache
def entries(group: str) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """The entry points of a group by name, several where packages clash. Nothing is imported."""
    found: dict[str, tuple[metadata.EntryPoint, ...]] = {}
    for entry in metadata.entry_points(group=group):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def load(group: str, name: str) -> Any:
    """What the entry point `name` of a group stands for.

    Raises:
        VTCError: it cannot be imported, or several packages have one of that name; the message says
            which packages.
    """
    found = entries(group)[name]
    if len(found) > 1:
        said = " and ".join(map(described, found))
        raise VTCError(f"{group}: {name!r} is {said}; only one of them can be installed")
    try:
        return found[0].load()
    except Exception as error:  # whatever the code of others raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise VTCError(f"{group}: cannot load {described(found[0])}: {reason}") from error


def load_all(group: str) -> list[Any]:
    """What the entry points of a group stand for, in the order of their names; one that is broken is
    warned about: it must not stand in the way of the others."""
    found = []
    for name in sorted(entries(group)):
        try:
            found.append(load(group, name))
        except VTCError as error:
            warnings.warn(str(error), RuntimeWarning, stacklevel=3)
    return found


def usable(group: str, table: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of `names` whose part is there; one of a package that is broken is warned about."""
    found = []
    for name in names:
        try:
            if name in entries(group):
                table[name]
        except VTCError as error:
            warnings.warn(str(error), RuntimeWarning, stacklevel=3)
            continue
        found.append(name)
    return found


def described(entry: metadata.EntryPoint) -> str:
    """The entry point for a message: what it names, and of which package."""
    return f"{entry.value!r} of {distribution(entry)}"


def distribution(entry: metadata.EntryPoint) -> str:
    """Name and version of the package that an entry point belongs to."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed package"


def where(group: str, name: str, made: Any) -> str:
    """Where a part comes from: `"vtc"`, a package with its version, or a file."""
    module = made.__module__
    if module.partition(".")[0] == "vtc":
        return "vtc"
    if name in entries(group):
        return distribution(entries(group)[name][0])
    return getattr(sys.modules.get(module), "__file__", None) or module


# -- loose modules and files -------------------------------------------------------------------


def import_asked() -> None:
    """Import what `VTC_IMPORT` names, each once.

    Raises:
        VTCError: one cannot be imported.
    """
    import_all(VARIABLE, os.environ.get(VARIABLE, "").split(","))


def import_all(source: str, places: Iterable[str]) -> None:
    """Import modules and files, each once in a process.

    Args:
        source: what the names were given with, for messages.
        places: `my_module`, or with its folder or ending `my_file.py`.

    Raises:
        VTCError: there is none, it raises an error, or a file is called like another module.
    """
    with _LOCK:
        for place in places:
            place = place.strip()
            if not place or place in _IMPORTED:
                continue
            _IMPORTED.add(place)  # first: a module that lists methods comes here again
            try:
                _import(place)
            except Exception as error:
                _IMPORTED.discard(place)
                name = "" if isinstance(error, (VTCError, OSError)) else f"{type(error).__name__}: "
                reason = getattr(error, "strerror", None) or f"{name}{error}"
                raise VTCError(
                    f"{source}: cannot import {place!r}: {' '.join(reason.split())}{_hint(place)}"
                ) from error


def _import(place: str) -> None:
    if not _is_file(place):
        importlib.import_module(place)
        return
    path = Path(place).expanduser().resolve(strict=True)
    name = path.stem.replace(".", "_")
    there = sys.modules.get(name) or importlib.util.find_spec(name)
    if there is not None:
        file = getattr(there, "__file__", None) or getattr(there, "origin", None)
        if file is None or Path(file).resolve() != path:
            raise VTCError(f"there is a module {name!r} already, give the file another name")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise VTCError("it is no Python file")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place


def _hint(place: str) -> str:
    file = f"{place}.py"
    return f"; a file is given as {file!r}" if not _is_file(place) and Path(file).is_file() else ""
