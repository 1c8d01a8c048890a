"""Names to what they make: look up, list by glob, create with checked options.

Methods, and the presets, quantisers and objectives of `vtc.discrete`, are all found this way.
"""

from __future__ import annotations

import fnmatch
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from vtc.errors import VTCError, nearest

if TYPE_CHECKING:
    from vtc.methods.base import Method

_METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound="type[Method]")
T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")


def names(table: Mapping[str, Any], pattern: str = "*") -> list[str]:
    """Names of a table that match a glob, sorted."""
    return sorted(fnmatch.filter(table, pattern))


def entry(table: Mapping[str, T], what: str, name: str) -> T:
    """The entry of a table.

    Raises:
        VTCError: there is none of that name; `what` is what the message calls it.
    """
    if not isinstance(name, str) or name not in table:
        raise VTCError(
            f"{what}: got {name!r}, available are {', '.join(sorted(table))}{nearest(name, table)}"
        )
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


def register_method(cls: M) -> M:
    """Class decorator: make a `Method` available under its `name`.

    Raises:
        VTCError: the class has no name, or the name belongs to another class, be it one of the same
            name in another module.
    """
    name = getattr(cls, "name", "")
    if not name:
        raise VTCError(f"name: {cls.__qualname__} has none, give the class a `name`")
    put(_METHODS, "name", name, cls)
    return cls


def _load() -> dict[str, type[Method]]:
    import vtc.methods  # noqa: F401  (importing the package registers the built-in methods)

    return _METHODS


def list_methods(pattern: str = "*") -> list[str]:
    """Registered method names that match a glob, sorted."""
    return names(_load(), pattern)


def compared_methods() -> list[str]:
    """Names of vtc's own methods but "none", as tables show them: baselines, then what is published."""
    own = {
        name: cls
        for name, cls in _load().items()
        if cls.__module__.startswith("vtc.methods.") and name != "none"
    }
    return sorted(own, key=lambda name: (bool(own[name].paper), name))


def method_class(name: str) -> type[Method]:
    """The class registered under `name`.

    Raises:
        VTCError: there is none; of published methods that are not here it says why.
    """
    try:
        return entry(_load(), "method", name)
    except VTCError as error:
        from vtc.methods._known import unknown

        raise unknown(error, name) from None


def create_method(name: str, **options: Any) -> Method:
    """An instance of the method `name`; `options` are its dataclass fields.

    Raises:
        VTCError: unknown method, unknown option or a value out of range.
    """
    method_class(name)  # says more than a table does
    return create(_load(), "method", name, **options)
