"""`CompressionConfig`: one configuration from a file, the environment, flags and keywords.

Later sources win: file < environment < flags < keywords. Every error names the source of the value:
`VTC_RETENTION: got 'abc', allowed are numbers in (0, 1]`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.errors import VTCError, meant, nearest
from vtc.openings import checked
from vtc.registry import check_method, create_method, method_class
from vtc.several import in_front, names_of, settled

if TYPE_CHECKING:
    from vtc.methods.base import Method

POSITIONS = ("original", "contiguous", "regrid")
#: environment variable -> field
VARIABLES = {
    "VTC_METHOD": "method",
    "VTC_RETENTION": "retention",
    "VTC_TOKENS": "tokens",
    "VTC_POSITIONS": "positions",
    "VTC_OPTIONS": "options",
}
#: variables of other parts of `vtc`, never taken for a misspelling
OTHER_VARIABLES = (
    *("VTC_KERNELS", "VTC_CHECK", "VTC_IMPORT"),
    *("VTC_VLLM", "VTC_MIN_RETENTION", "VTC_MAX_RETENTION", "VTC_ALLOW_PROCESSOR_KWARGS"),
)
#: the two ways to state a budget; setting one replaces the other
BUDGET = {"retention": "tokens", "tokens": "retention"}
# PyYAML follows YAML 1.1, where 1e-3 without a dot is a string
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


@dataclass
class CompressionConfig:
    """What to do to the visual tokens of a model.

    Attributes:
        method: a name of `vtc.list_methods()`; `"none"` leaves a model untouched. Several that work
            one behind the other are `"a+b"`.
        retention: share of patch tokens to keep, in (0, 1], or one share per image of a call, row by
            row and left to right, clips among them; or shares by how a question begins, `{"how many":
            0.7, "*": 0.12}`, with "*" for all others. None leaves it to the method. Of several methods
            only a plan with one that makes pictures smaller has one for all: what is left at the end.
        tokens: absolute number of patch tokens instead, or one number per image. Where an image has
            fewer all stay, with the option `strict` it is an error.
        positions: `"original"` keeps the positions of the uncompressed prompt, `"contiguous"`
            numbers what is left without gaps, `"regrid"` closes the gaps on every axis.
        options: further hyper-parameters of the method, by name; of several methods, by method all
            that each is given: `{"a": {"retention": 0.5}, "b": {...}}`.
    """

    method: str = "none"
    retention: float | list[float] | dict[str, float] | None = None
    tokens: int | list[int] | None = None
    positions: str = "original"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise VTCError(
                f"positions: got {self.positions!r}, allowed are {', '.join(POSITIONS)}"
                f"{nearest(self.positions, POSITIONS)}"
            )
        if not isinstance(self.options, Mapping):
            raise VTCError(f"options: got {self.options!r}, expected a mapping of names to values")
        names = names_of(self.method)
        if len(names) > 1:
            given = [key for key in BUDGET if getattr(self, key) is not None]
            given = given if given and in_front(names) is None else []
            given += [key for key in self.options if key not in names]
            if given or not all(isinstance(each, Mapping) for each in self.options.values()):
                raise VTCError(f"{given[0] if given else 'options'}: {_tables(self.method)}")
            return
        for key in self.options:
            _check_key("options", key)

    def create(self, defaults: Mapping[str, Mapping[str, Any]] | None = None) -> Method:
        """The configured method, see `create_all` for several.

        Args:
            defaults: options that come with the model, by method, see `vtc.model_defaults`; those of
                the configuration go before them.

        Raises:
            VTCError: unknown method, unknown option, a value out of range, or several methods.
        """
        methods = self.create_all(defaults)
        if len(methods) > 1:
            raise VTCError(f"method: got {self.method!r}, allowed is one method here")
        return methods[0]

    def create_all(self, defaults: Mapping[str, Mapping[str, Any]] | None = None) -> list[Method]:
        """Every configured method, in the order of their names; arguments and errors as `create`."""
        methods = [
            create_method(name, **{**(defaults or {}).get(name, {}), **fields})
            for name, fields in self.parts()
        ]
        return settled(methods)

    def parts(self) -> list[tuple[str, dict[str, Any]]]:
        """The name of every method, and what is given of its fields."""
        names = names_of(self.method)
        if len(names) == 1:
            return [(self.method, self.fields())]
        front = in_front(names)
        return [
            (name, {**(self.budget() if name == front else {}), **self.options.get(name, {})})
            for name in names
        ]

    def fields(self) -> dict[str, Any]:
        """What is given of the method's fields: the budget, where there is one, and the options."""
        return {**self.budget(), **self.options}

    def budget(self) -> dict[str, Any]:
        """The budget by the name of its field, empty where there is none."""
        budget = {"retention": self.retention, "tokens": self.tokens}
        return {k: v for k, v in budget.items() if v is not None}

    def overlaid(self, keywords: Mapping[str, Any], prefix: str = "") -> CompressionConfig:
        """This configuration with a request's keywords over it, merged as the sources of
        `from_sources` are.

        Args:
            keywords: fields of this class; None counts as not given.
            prefix: what stands in front of their names in errors.
        """
        for key in keywords:
            if key not in VARIABLES.values():
                raise VTCError(
                    f"{prefix}{key}: unknown, allowed are "
                    f"{', '.join(prefix + name for name in VARIABLES.values())}"
                )
        mine = {name: getattr(self, name) for name in VARIABLES.values()}
        merged = _Merged()
        merged.add(list(_keywords(mine)))
        merged.add(
            [(name, prefix + where, value) for name, where, value in _keywords(keywords, prefix)]
        )
        return CompressionConfig(**merged.finish())

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values; a file with them gives the same configuration."""
        return dataclasses.asdict(self)

    @classmethod
    def from_sources(
        cls,
        file: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] = os.environ,
        args: argparse.Namespace | None = None,
        **keywords: Any,
    ) -> CompressionConfig:
        """Merge all sources; with nothing set the method is `"none"`.

        `options` merge key by key. A source that names another method than the sources below it
        drops the options they gave, because those belong to the method it replaces (`"none"` drops
        all). A `retention` replaces `tokens` of a lower source and the other way round.

        Args:
            file: YAML or JSON with the fields of this class as keys.
            env: where `VTC_METHOD`, `VTC_RETENTION`, `VTC_TOKENS`, `VTC_POSITIONS` and
                `VTC_OPTIONS` (JSON) are read; an empty value counts as not set.
            args: what a parser with `add_arguments` has parsed; flags not given change nothing.
            keywords: fields of this class; any other keyword is an option of the method. None
                counts as not given.

        Raises:
            VTCError: an unreadable file, an unknown key, method or option (with the nearest name),
                a misspelt `VTC_*` variable, or a value out of range.
        """
        merged = _Merged()
        for source in (_file(file), _environment(env), _flags(args), _keywords(keywords)):
            merged.add(list(source))
        return cls(**merged.finish())


def add_arguments(parser: argparse.ArgumentParser, prefix: str = "vtc-") -> None:
    """Add `--vtc-method`, `--vtc-retention`, `--vtc-tokens`, `--vtc-positions`, `--vtc-option`.

    The values stay text until `CompressionConfig.from_sources(args=...)` reads them, so that errors
    are `VTCError`s with the name of the flag.

    Args:
        prefix: what stands between `--` and the name; the namespace does not depend on it.
    """
    group = parser.add_argument_group("compression")

    def add(name: str, **kwargs: Any) -> None:
        group.add_argument(f"--{prefix}{name}", dest=f"vtc_{name}", default=None, **kwargs)

    add("method", metavar="NAME", help="compression method, see `vtc methods`")
    add("retention", metavar="SHARE", help="share of patch tokens to keep, or one per image: .5,.2")
    add("tokens", metavar="COUNT", help="absolute number of patch tokens instead, or one per image")
    add("positions", metavar="RULE", help=f"position ids: {' or '.join(POSITIONS)}")
    add("option", metavar="KEY=VALUE", action="append", help="option of the method, repeatable")
    parser.set_defaults(vtc_prefix=prefix)


# -- merging -----------------------------------------------------------------------------------

# One value of one source: field or option, its name in error messages, the raw value.
Entry = tuple[str, str, Any]


class _Merged:
    """The values so far, and where each option came from."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.options: dict[str, tuple[str, Any]] = {}  # name -> (source, value)

    def add(self, source: list[Entry]) -> None:
        """Lay one source over what is there."""
        fields = {name: (where, value) for name, where, value in source if name != "option"}
        budgets = [name for name in BUDGET if name in fields]
        if len(budgets) == 2:
            given = [name for name in budgets if fields[name][1] is not None]
            if len(given) == 2:
                raise VTCError(
                    f"{fields['tokens'][0]}: got {fields['tokens'][1]!r} beside "
                    f"{fields['retention'][0]}={fields['retention'][1]!r}, give only one"
                )
            fields.pop("tokens" if given == ["retention"] else "retention")
        for name, (where, value) in fields.items():
            self._set(name, where, value)
        for name, where, value in source:
            if name == "option":
                key, value = value
                self.options[key] = (where, value)

    def _set(self, name: str, where: str, value: Any) -> None:
        if name == "method":
            value = _method(where, value)
            if self.values.get("method", value) != value:
                self._check_options()
                self.options = {}
        elif name == "positions":
            if value not in POSITIONS:
                raise VTCError(
                    f"{where}: got {value!r}, allowed are {', '.join(POSITIONS)}"
                    f"{nearest(value, POSITIONS)}"
                )
        else:
            value = _budget(name, where, value)
            self.values.pop(BUDGET[name], None)
        self.values[name] = value

    def _check_options(self) -> None:
        method = self.values.get("method")
        if len(names_of(method or "")) > 1:
            return  # `CompressionConfig` looks at the tables
        if method == "none":  # switched off on purpose: what is left of other settings is no error
            self.options = {}
        if not self.options:
            return
        if method is None:
            where, key = next(iter(self.options.values()))[0], next(iter(self.options))
            raise VTCError(f"{where}: got {key!r}, but no method is named")
        known = [f.name for f in dataclasses.fields(method_class(method)) if f.init]
        allowed = [name for name in known if name not in BUDGET]
        for key, (where, _) in self.options.items():
            _check_key(where, key)
            if key not in allowed:
                takes = ", ".join(allowed) or "no options"
                raise VTCError(
                    f"{where}: method {method!r} has no option {key!r}, it takes {takes}"
                    f"{nearest(key, [*allowed, *VARIABLES.values()])}"
                )

    def finish(self) -> dict[str, Any]:
        """Keyword arguments of `CompressionConfig`, all of them checked."""
        self._check_options()
        if len(names_of(self.values.get("method", ""))) > 1:
            tables = {
                key: parse_value(value) if isinstance(value, FlagText) else value
                for key, (_, value) in self.options.items()
            }
            CompressionConfig(**{**self.values, "options": tables}).create_all()
            return {**self.values, "options": tables}
        options = {
            key: option_value(self.values["method"], key, value)
            for key, (_, value) in self.options.items()
        }
        if options:  # values out of range should name their source too
            try:
                create_method(self.values["method"], **options)
            except VTCError as error:
                key = str(error).partition(":")[0]
                where = self.options[key][0] if key in self.options else "options"
                raise VTCError(f"{where}: {error}") from error
        return {**self.values, "options": options}


def _check_key(where: str, key: str) -> None:
    """Refuse a setting where an option of a method is expected."""
    if key in VARIABLES.values():
        raise VTCError(f"{where}: {key!r} is not an option, give it as {key!r} itself")


def _method(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise VTCError(f"{where}: got {value!r}, expected the name of a method")
    try:
        for name in names_of(value):
            check_method(name)
    except VTCError as error:
        raise VTCError(f"{where}: {str(error).partition(': ')[2]}") from None
    return value


def _tables(method: str) -> str:
    """What is said where the options of several methods are not sorted by method."""
    example = ", ".join(f"{name!r}: {{...}}" for name in names_of(method))
    return f"got one for {method!r}, where each has its own, allowed are options={{{example}}}"


def _budget(name: str, where: str, value: Any) -> Any:
    """`retention` or `tokens` from text or plain values: a number, a list of numbers, of `retention`
    also shares by question, or None."""
    if isinstance(value, str):
        value = parse_value(value)
        if isinstance(value, str) and "," in value:
            parts = value.split(",")
            if not all(part.strip() for part in parts):
                raise VTCError(f"{where}: got {value!r}, expected a number on each side of a comma")
            value = [parse_value(part) for part in parts]
    value = _exponent(value)
    if value is None:
        return None
    if isinstance(value, Mapping) and name == "retention":
        return checked(value, where)
    several = isinstance(value, (list, tuple))
    for number in value if several else [value]:
        whole = isinstance(number, Integral) and not isinstance(number, bool)
        if name == "retention":
            good, text = (
                isinstance(number, Real)
                and not isinstance(number, bool)
                and 0 < float(number) <= 1,
                "numbers in (0, 1]",
            )
        else:
            good, text = whole and number >= 1, "whole numbers >= 1"
        if not good:
            raise VTCError(f"{where}: got {number!r}, allowed are {text}")
    if several and not value:
        raise VTCError(f"{where}: got an empty list, expected one number per image")
    return list(value) if several else value


# -- sources -----------------------------------------------------------------------------------


def _file(path: str | os.PathLike[str] | None) -> Iterator[Entry]:
    if path is None:
        return
    if not isinstance(path, (str, os.PathLike)):
        raise VTCError(f"file: got {path!r}, expected a path")
    where = str(path)
    for key, value in _read(Path(path)).items():
        if key not in VARIABLES.values():
            raise VTCError(
                f"{where}: unknown key {key!r}, allowed are {', '.join(VARIABLES.values())}"
                f"{nearest(key, VARIABLES.values())}"
            )
        if key == "options":
            if not isinstance(value, (Mapping, type(None))):
                raise VTCError(f"{where}, options: got {value!r}, expected names with values")
            for name, option in (value or {}).items():
                yield "option", f"{where}, options", (str(name), option)
        elif value is not None or key in BUDGET:
            yield key, f"{where}, {key}", value


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise VTCError(f"file: cannot read {str(path)!r}: {reason}") from error
    try:
        if path.suffix.lower() == ".json":
            data = json.loads(text) if text.strip() else None
        else:
            import yaml

            data = yaml.safe_load(text)
    except Exception as error:  # json and yaml errors have no common base but ValueError/YAMLError
        raise VTCError(f"{path}: cannot be parsed: {_one_line(error)}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise VTCError(f"{path}: got {type(data).__name__}, expected keys with values")
    return data


def _environment(env: Mapping[str, str]) -> Iterator[Entry]:
    if not isinstance(env, Mapping):
        raise VTCError(f"env: got {env!r}, expected a mapping of names to text")
    for variable in env:
        _reject_misspelt(variable)
    for variable, name in VARIABLES.items():
        value = env.get(variable, "").strip()
        if not value:
            continue
        if name != "options":
            yield name, variable, value
            continue
        try:
            options = json.loads(value)
        except json.JSONDecodeError as error:
            raise VTCError(f"{variable}: got {value!r}, not JSON: {_one_line(error)}") from error
        if not isinstance(options, dict):
            raise VTCError(f'{variable}: got {value!r}, expected a JSON object {{"name": value}}')
        for option in options.items():
            yield "option", variable, option


def _reject_misspelt(variable: str) -> None:
    """Raise for a variable that is nearly one of ours; other `VTC_*` variables are not ours."""
    name, known = variable.upper(), [*VARIABLES, *OTHER_VARIABLES]
    if variable in known or not name.startswith("VTC"):
        return
    # the common prefix would make everything look alike
    plain = {k.removeprefix("VTC_"): k for k in known}
    word = name[3:].lstrip("_")
    match = difflib.get_close_matches(word, plain, n=1, cutoff=0.7) or [meant(word)[0].upper()]
    if match[0]:
        raise VTCError(f"{variable}: unknown variable; did you mean {plain[match[0]]!r}?")


def _flags(args: argparse.Namespace | None) -> Iterator[Entry]:
    if args is None:
        return
    if isinstance(args, Mapping):
        raise VTCError(f"args: got {type(args).__name__}, expected what a parser returns")
    prefix = getattr(args, "vtc_prefix", "vtc-")
    for name in ("method", "retention", "tokens", "positions"):
        value = getattr(args, f"vtc_{name}", None)
        if value is not None:
            if value == "":  # a variable of the shell that is not set
                raise VTCError(f"--{prefix}{name}: got '', expected a value")
            yield name, f"--{prefix}{name}", value
    for text in getattr(args, "vtc_option", None) or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise VTCError(f"--{prefix}option: got {text!r}, expected KEY=VALUE")
        yield "option", f"--{prefix}option", (key.strip(), FlagText(value))


def _keywords(keywords: Mapping[str, Any], prefix: str = "") -> Iterator[Entry]:
    for name, value in keywords.items():
        if value is None:
            continue
        if name == "options":
            if not isinstance(value, Mapping):
                raise VTCError(
                    f"{prefix}options: got {value!r}, expected a mapping of names to values"
                )
            for option in value.items():
                yield "option", "options", option
        elif name in VARIABLES.values():
            yield name, name, value
        else:
            yield "option", f"keyword {name}", (name, value)


class FlagText(str):
    """The value of an option as it stood on the command line; what it means depends on the method."""


def option_value(method: str, name: str, value: Any) -> Any:
    """The value of a method's option: text where the field is a string, else what YAML reads, also for
    a name that is no option, which `create_method` refuses."""
    fields = dataclasses.fields(method_class(method))
    kind = next((field.type for field in fields if field.name == name), None)
    if getattr(kind, "__name__", str(kind)) in ("str", "str | None"):
        return str(value) if isinstance(value, FlagText) else value
    return parse_value(value) if isinstance(value, FlagText) else _exponent(value)


def parse_value(text: str) -> Any:
    """A YAML scalar or flow sequence: `0.5`, `true`, `null`, `[1, 2]`, otherwise the text."""
    import yaml

    try:
        return _exponent(yaml.safe_load(text))
    except yaml.YAMLError:
        return text


def _exponent(value: Any) -> Any:
    if isinstance(value, list):
        return [_exponent(each) for each in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value.strip()) else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
