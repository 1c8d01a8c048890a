"""The columns of an experiment: methods x retentions x seeds, and the method objects they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vtc.config import FlagText, option_value, parse_value
from vtc.errors import VTCError
from vtc.registry import check_method, create_method, method_class
from vtc.several import names_of, settled

if TYPE_CHECKING:
    from vtc.methods.base import Method


@dataclass(frozen=True)
class Setting:
    """One column of an experiment: a method with its settings.

    Attributes:
        method: registered name; "none" is the uncompressed model. `"a+b"` are two methods one behind
            the other, each at a place of its own.
        retention: share of the patch tokens that is kept; None leaves it to the method (`adaptive`
            methods have a count of their own). Of `"a+b"` that of `budgeted`.
        seed: of a method that draws; 0 for the others.
        options: further fields of the method; of `"a+b"` a table of them for each. Of "none" alone
            `pixels`, the share of their pixels to which pictures are brought before the model sees
            them, see `vtc.eval.accuracy.hard`.
    """

    method: str
    retention: float | None = 1.0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Unique name, such as `random@0.25#2`, `recoverable@own` or `pool@0.5{"window": 2}`."""
        share = "own" if self.retention is None else str(self.retention).removesuffix(".0")
        seed = f"#{self.seed}" if self.seed else ""
        options = json.dumps(dict(self.options), sort_keys=True) if self.options else ""
        return f"{self.method}@{share}{seed}{options}"

    @property
    def pixels(self) -> float | None:
        """The share of pixels, None where pictures stay as they are."""
        return self.options.get("pixels") if self.method == "none" else None

    @property
    def label(self) -> str:
        """What tables say under retention."""
        return share_label(self.retention)


#: the uncompressed model, the reference of every experiment
FULL = Setting("none")


def plan(
    methods: Sequence[str],
    retentions: Sequence[float | None],
    seeds: int = 1,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    pixels: Sequence[float] = (),
) -> list[Setting]:
    """The uncompressed model, the same with coarse pictures, then every method at every retention,
    with every seed if it draws.

    Retention 1 is the uncompressed model whatever the method; None is the method's own count and
    concerns `adaptive` methods alone.

    Args:
        seeds: 0 to `seeds - 1` for methods that draw, unless their options give the seed.
        options: further fields, by method.
        pixels: shares of pixels of coarse pictures, which tell hard questions.

    Raises:
        VTCError: no method or no retention, unknown method or option, a value out of range, options
            of a method that is not among `methods`, or None where no method has its own count.
    """
    check(methods, retentions)
    options = options or {}
    check_options(methods, options)
    for share in pixels:
        if not 0 < share < 1:
            raise VTCError(f"pixels: got {share!r}, allowed are numbers in (0, 1)")
    found = [FULL, *(Setting("none", options={"pixels": share}) for share in pixels)]
    own = {name: options_of(name, options) for name in methods}
    made = {name: create(Setting(name, None, options=own[name])) for name in methods}
    if None in retentions and not any(_counts_itself(name) for name in methods):
        raise VTCError(f"retention: got own, but none of {', '.join(methods)} has its own count")
    for name, parts in made.items():
        drawn = any(part.draws and "seed" not in options.get(part.name, {}) for part in parts)
        for retention in retentions:
            if retention is None and not _counts_itself(name):
                continue
            create(Setting(name, retention))
            if (retention == 1 and len(parts) == 1) or name == "none":
                continue
            count = range(seeds if drawn else 1)
            found += [Setting(name, retention, seed, own[name]) for seed in count]
    return list({setting.key: setting for setting in found}.values())


def check(methods: Sequence[str], retentions: Sequence[float | None]) -> None:
    """Raise `VTCError` for unknown methods and shares out of range, before any method is imported."""
    for name, given in (("methods", methods), ("retention", retentions)):
        if not given:
            raise VTCError(f"{name}: got none, give one at least")
    for name in methods:
        for part in names_of(name):
            check_method(part)
    for share in retentions:
        if share is not None and not 0 < share <= 1:
            raise VTCError(f"retention: got {share!r}, allowed are numbers in (0, 1]")


def check_options(methods: Sequence[str], options: Mapping[str, Any]) -> None:
    """Raise `VTCError` for options of a method that is not among `methods`, nor a part of one."""
    known = {part for name in methods for part in names_of(name)}
    for name in options:
        if name not in known:
            raise VTCError(f"method-options: got options of {name!r}, which is not in methods")


def create(
    setting: Setting, defaults: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Method]:
    """The methods of a setting: one, or those of `"a+b"`; `vtc.compress` takes the list.

    Args:
        defaults: fields that come with the model, by method; options of the setting win.

    Raises:
        VTCError: unknown method or option, a value out of range, or a second share for the method that
            has that of the setting.
    """
    names, budget = names_of(setting.method), budgeted(setting.method)
    made = []
    for name in names:
        own = setting.options if len(names) == 1 else setting.options.get(name, {})
        options = {**(defaults or {}).get(name, {}), **own}
        if setting.seed and "seed" not in own and hasattr(method_class(name), "seed"):
            options["seed"] = setting.seed
        if name == budget:
            if "retention" in own:
                raise VTCError(f"method-options: {name}.retention is given by --retention")
            options["retention"] = setting.retention
        made.append(create_method(name, **options))
    return settled(made)


def budgeted(method: str) -> str:
    """Of several methods that work one behind the other, `"a+b"`, the one that has the `retention` of a
    setting: the one in front of the language model. What works inside it has its published counts there
    and behind the first, unless its options say otherwise. Of one method that one."""
    names = names_of(method)
    return next((name for name in names if method_class(name).where != "layers"), names[0])


def options_of(method: str, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The options of a setting, of those by name."""
    names = names_of(method)
    if len(names) == 1:
        return dict(options.get(method, {}))
    return {name: dict(options[name]) for name in names if name in options}


def _counts_itself(method: str) -> bool:
    """Whether the method that has the budget has a count of its own."""
    return method_class(budgeted(method)).adaptive


def share_label(retention: float | None) -> str:
    """A retention in words."""
    return "its own" if retention is None else f"{retention:.0%}"


def parse_retention(text: str) -> float | None:
    """A share as the command line has it; `own`, a method's own count, is None.

    Raises:
        VTCError: neither a number nor `own`.
    """
    if text == "own":
        return None
    try:
        return float(text)
    except ValueError:
        raise VTCError(f"retention: got {text!r}, allowed are numbers in (0, 1] and own") from None


def parse_pixels(text: str) -> float:
    """A share of pixels as the command line has it.

    Raises:
        VTCError: no number.
    """
    try:
        return float(text)
    except ValueError:
        raise VTCError(f"pixels: got {text!r}, allowed are numbers in (0, 1)") from None


def method_option(method: str, field: str, text: str) -> Any:
    """The value of a method's field; text stays text where the field is one. For `parse_options`."""
    return option_value(method, field, FlagText(text))


def parse_options(
    texts: Sequence[str],
    flag: str,
    read: Callable[[str, str, str], Any] = lambda name, field, text: parse_value(text),
) -> dict[str, dict[str, Any]]:
    """`NAME.FIELD=VALUE`, or JSON `{"NAME": {"FIELD": VALUE}}`, each any number of times.

    Args:
        texts: what was given.
        flag: of the command, for messages.
        read: `(name, field, text)` to the value of a field; YAML by default.

    Raises:
        VTCError: neither of them; the message names `flag`.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        if text.lstrip().startswith("{"):
            try:
                given = json.loads(text)
            except json.JSONDecodeError as error:
                raise VTCError(f"{flag}: got {text!r}, not JSON: {error}") from None
        else:
            path, equals, value = text.partition("=")
            name, dot, option = path.strip().partition(".")
            if not (equals and dot and name and option):
                raise VTCError(f"{flag}: got {text!r}, expected NAME.FIELD=VALUE or JSON")
            given = {name: {option: read(name, option, value)}}
        for name, fields in given.items():
            if not isinstance(fields, dict):
                raise VTCError(f"{flag}: got {fields!r} for {name!r}, expected fields with values")
            found.setdefault(name, {}).update(fields)
    return found
