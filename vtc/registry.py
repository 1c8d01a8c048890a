"""Names to what they make: look up, list by glob, create with checked options.

Methods, and the presets, quantisers and objectives of `vtc.discrete`, are all found this way.
"""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vtc import doors
from vtc.errors import VTCError, nearest
from vtc.published import unknown

if TYPE_CHECKING:
    from vtc.methods.base import Method

M = TypeVar("M", bound="type[Method]")
T = TypeVar("T")
C = TypeVar("C", bound=type)
F = TypeVar("F", bound="Callable[..., Any]")


def names(table: Mapping[str, Any], pattern: str = "*") -> list[str]:
    """Names of a table that match a glob, sorted."""
    return sorted(fnmatch.filter(table, pattern))


def check_name(table: Mapping[str, Any], what: str, name: str) -> None:
    """Raise `VTCError` where a table has no such name; `what` is what the message calls it."""
    if not isinstance(name, str) or name not in table:
        raise VTCError(
            f"{what}: got {name!r}, available are {', '.join(sorted(table))}{nearest(name, table)}"
        )


def entry(table: Mapping[str, T], what: str, name: str) -> T:
    """The entry of a table.

    Raises:
        VTCError: there is none of that name.
    """
    check_name(table, what, name)
    return table[name]


def refuse_unknown(name: str, options: Iterable[str], takes: Collection[str]) -> None:
    """Raise `VTCError` for the first of `options` that `name` does not take."""
    for option in options:
        if option not in takes:
            raise VTCError(
                f"{option}: {name!r} has no such option, it takes {', '.join(takes)}"
                f"{nearest(option, takes)}"
            )


def create(table: Mapping[str, Callable[..., T]], what: str, name: str, **options: Any) -> T:
    """Call the entry `name` of a table with `options`.

    Raises:
        VTCError: the name or an option is unknown, or a needed option is missing.
    """
    make = entry(table, what, name)
    parameters = inspect.signature(make).parameters
    refuse_unknown(name, options, parameters)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in options:
            raise VTCError(f"{key}: {name!r} needs it")
    return make(**options)


def put(table: dict[str, Any], what: str, name: str, made: Any) -> None:
    """Put `made` under `name` into a table. The same module read again replaces its own entry.

    Raises:
        VTCError: the name belongs to another entry, be it one of the same name in another module.
    """
    known = table.get(name)
    if known is not None and _origin(known) != _origin(made):
        raise VTCError(
            f"{what}: {name!r} is already registered by {_said(known)}, so {_said(made)} needs "
            "another name"
        )
    table[name] = made


def _origin(made: Any) -> tuple[str, str]:
    """Source and name. A file is one source, be it run as a script or imported."""
    module, name = _named(made)
    return getattr(sys.modules.get(module), "__file__", None) or module, name


def _said(made: Any) -> str:
    return ".".join(_named(made))


def _named(made: Any) -> tuple[str, str]:
    made = getattr(made, "func", made)  # what is in a functools.partial
    kind = made if hasattr(made, "__qualname__") else type(made)
    return str(made.__module__), str(kind.__qualname__)


def register(table: dict[str, Callable[..., T]], name: str) -> Callable[[F], F]:
    """Decorator: put a function or a class of your own under `name` into a table of `vtc.discrete`.

    The tables are `quantizers.QUANTIZERS`, `plans.PLANS`, `objectives.OBJECTIVES`, `heads.HEADS`,
    `samplers.SAMPLERS`, `presets.TOKENIZERS` and `presets.GENERATORS`; an entry can be used wherever
    a name is taken.

    Raises:
        VTCError: the name belongs to another entry, be it one of the same name in another module.
    """

    def add(make: F) -> F:
        put(table, "name", name, make)
        return make

    return add


class Classes(Mapping[str, C]):
    """Classes by their `name`: those of `vtc`, of installed packages, and those that were registered.

    What there is is known without importing any; a class is imported when it is asked for.

    Args:
        package: where those of `vtc` are, each in a file that is called as its class.
        group: the entry points of installed packages.
        base: what they all derive from, as `module:Class`.
    """

    def __init__(self, package: str, group: str, base: str) -> None:
        self.package, self.group, self.base = package, group, base
        self.made: dict[str, C] = {}  # imported or registered so far

    @cached_property
    def own(self) -> set[str]:
        """Names of those of `vtc`."""
        spec = importlib.util.find_spec(self.package)
        folders = list((spec and spec.submodule_search_locations) or ())
        files = [file for folder in folders for file in Path(folder).glob("*.py")]
        named = r'^    name(?:: ClassVar\[str\])? = "{}"$'
        return {
            file.stem
            for file in files
            if re.search(named.format(file.stem), file.read_text("utf-8"), re.MULTILINE)
        }

    def __iter__(self) -> Iterator[str]:
        doors.import_asked()
        return iter(sorted({*self.own, *doors.entries(self.group), *self.made}))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def __getitem__(self, name: str) -> C:
        doors.import_asked()
        if name in self.own and name not in self.made:
            self._load_own(name)
        if name in doors.entries(self.group):
            self._load_theirs(name)
        return self.made[name]

    def _load_own(self, name: str) -> None:
        module = importlib.import_module(f"{self.package}.{name}")
        self.made[name] = next(c for c in vars(module).values() if _called(c) == name)

    def _load_theirs(self, name: str) -> None:
        made = doors.load(self.group, name)
        said = f"{self.group}: {doors.described(doors.entries(self.group)[name][0])}"
        if not isinstance(made, type) or not issubclass(made, pkgutil.resolve_name(self.base)):
            raise VTCError(f"{said} is no class derived from {self.base.replace(':', '.')}")
        if _called(made) != name:
            raise VTCError(f"{said} has the name {_called(made)!r}, the entry point {name!r}")
        try:
            put(self.made, "name", name, made)
        except VTCError as error:
            raise VTCError(f"{said}: {error}") from None

    def add(self, cls: C) -> None:
        """Register a class under its `name`.

        Raises:
            VTCError: it has none, or the name belongs to another class.
        """
        name = getattr(cls, "name", "")
        if not name:
            raise VTCError(f"name: {cls.__qualname__} has none, give the class a `name`")
        if name in self.own and cls.__module__ != f"{self.package}.{name}":
            self._load_own(name)  # nobody takes the name of one that was not imported yet
        put(self.made, "name", name, cls)


def _called(made: Any) -> Any:
    return made.__dict__.get("name") if isinstance(made, type) else None


_METHODS: Classes[type[Method]] = Classes("vtc.methods", doors.METHODS, "vtc.methods.base:Method")


def register_method(cls: M) -> M:
    """Class decorator: make a `Method` available under its `name`.

    Raises:
        VTCError: the class has no name, or the name belongs to another class, be it one of the same
            name in another module.
    """
    _METHODS.add(cls)
    return cls


def list_methods(pattern: str = "*") -> list[str]:
    """Method names that match a glob, sorted: of `vtc`, of installed packages, and registered ones."""
    return doors.usable(doors.METHODS, _METHODS, names(_METHODS, pattern))


def compared_methods(every: bool = True, where: str | None = None) -> list[str]:
    """Names of vtc's own methods but "none", as tables show them: baselines, then what is published.

    Args:
        every: False for those alone that are `shown` where nobody names any.
        where: those of one place alone, see `Method.where`.
    """
    own = {name: _METHODS[name] for name in _METHODS.own if name != "none"}
    own = {name: cls for name, cls in own.items() if every or cls.shown}
    own = {name: cls for name, cls in own.items() if where in (None, cls.where)}
    return sorted(own, key=lambda name: (bool(own[name].paper), name))


def check_method(name: str) -> None:
    """Raise `VTCError` for a name that no method has; of published methods that are not here it says
    why. Nothing is imported."""
    try:
        check_name(_METHODS, "method", name)
    except VTCError as error:
        raise unknown(error, name) from None


def method_class(name: str) -> type[Method]:
    """The class of the method `name`.

    Raises:
        VTCError: there is none, see `check_method`; or that of a package cannot be imported.
    """
    check_method(name)
    return _METHODS[name]


def where_from(name: str) -> str:
    """Where a method comes from: `"vtc"`, a package with its version, or a file."""
    return doors.where(doors.METHODS, name, method_class(name))


def create_method(name: str, **options: Any) -> Method:
    """An instance of the method `name`; `options` are its dataclass fields.

    Raises:
        VTCError: unknown method, unknown option or a value out of range.
    """
    check_method(name)  # says more than a table does
    return create(_METHODS, "method", name, **options)
