"""The settings that are tried: methods and compositions x budgets x positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtc.config import POSITIONS, CompressionConfig
from vtc.errors import VTCError, nearest
from vtc.eval.common.settings import Setting, check_options, options_of
from vtc.registry import check_method
from vtc.several import in_front, names_of

if TYPE_CHECKING:
    from vtc.methods.base import Method

#: tried where nobody names any: baselines, the best of each kind, fewer pixels, both together, and cuts
#: inside the language model, alone and behind one in front
METHODS = (
    *("uniform", "divprune", "mmr", "scope", "coverage", "visionzip", "recoverable"),
    *("resize", "resize+divprune", "pyramiddrop", "divprune+pyramiddrop"),
)
RETENTIONS = (0.75, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05)


@dataclass(frozen=True)
class Candidate(Setting):
    """A setting that may be the one: method or composition, budget, positions.

    Attributes:
        tokens: absolute budget in place of `retention`.
        positions: as `vtc.compress` takes them.
    """

    tokens: int | None = None
    positions: str = "original"

    def __hash__(self) -> int:
        return hash(self.key)  # options are a mapping

    @property
    def key(self) -> str:
        more = "" if self.positions == "original" else f"/{self.positions}"
        return f"{super().key}{f':{self.tokens}' if self.tokens else ''}{more}"

    @property
    def family(self) -> tuple[str, str, str]:
        """Method, positions and what the budget is of: settings with the same differ in the size of
        their budget alone."""
        kind = "retention" if self.tokens is None else "tokens"
        return self.method, self.positions, kind

    @property
    def budget(self) -> float:
        """To be ordered by, within a family."""
        return self.tokens if self.tokens is not None else self.retention or 0.0

    @property
    def label(self) -> str:
        """For people: `divprune at 25 %`."""
        share = 100 * (self.retention or 0.0)
        at = f"{self.tokens} tokens" if self.tokens is not None else f"{share:.6g} %"
        more = "" if self.positions == "original" else f", positions {self.positions}"
        return f"{self.method} at {at}{more}"

    def config(self) -> CompressionConfig:
        """As a configuration file has it. Where methods with budgets of their own work one behind the
        other each gets the same share, so that their product is `retention`."""
        names = names_of(self.method)
        options: dict[str, Any] = dict(self.options)
        if len(names) > 1 and in_front(names) is None:
            share = round((self.retention or 1.0) ** (1 / len(names)), 4)
            options = {name: {"retention": share, **options.get(name, {})} for name in names}
            return CompressionConfig(self.method, positions=self.positions, options=options)
        return CompressionConfig(
            self.method, self.retention, self.tokens, positions=self.positions, options=options
        )

    def create(self, defaults: Mapping[str, Mapping[str, Any]]) -> list[Method]:
        """Its methods, with what the model brings."""
        return self.config().create_all(defaults)


def plan(
    methods: Sequence[str] | None = None,
    retentions: Sequence[float] | None = None,
    tokens: Sequence[int] = (),
    positions: Sequence[str] = ("original",),
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Candidate]:
    """Every method at every budget with every rule for positions, large budgets first.

    Args:
        methods: names, of compositions `"a+b"`; `METHODS` by default.
        retentions: shares of patch tokens; `RETENTIONS` by default, none beside `tokens`.
        tokens: absolute budgets, which a composition has only if it begins with `resize`.
        options: further fields, by method.

    Raises:
        VTCError: an unknown method, option or rule, a value out of range, or options of a method that
            is not among `methods`.
    """
    chosen = list(dict.fromkeys(METHODS if methods is None else methods))
    shares = (() if tokens else RETENTIONS) if retentions is None else retentions
    options = options or {}
    for name in chosen:
        if name == "none":
            raise VTCError(
                "methods: got 'none', the full model, which all are compared with anyway"
            )
        for part in names_of(name):
            check_method(part)
    check_options(chosen, options)
    for rule in positions:
        if rule not in POSITIONS:
            raise VTCError(
                f"positions: got {rule!r}, allowed are {', '.join(POSITIONS)}"
                f"{nearest(rule, POSITIONS)}"
            )
    for share in shares:
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share < 1:
            raise VTCError(f"retention: got {share!r}, allowed are numbers in (0, 1)")
    found = [
        candidate
        for name in chosen
        for rule in positions
        for candidate in _budgets(name, rule, shares, tokens, options, methods is None)
    ]
    if not found:
        raise VTCError("methods: got no method with a budget, so there is nothing to try")
    for candidate in found:
        candidate.config().create_all()
    return found


def _budgets(
    name: str,
    rule: str,
    shares: Sequence[float],
    tokens: Sequence[int],
    options: Mapping[str, Mapping[str, Any]],
    default: bool,
) -> Iterator[Candidate]:
    parts = names_of(name)
    several, mine = len(parts) > 1, options_of(name, options)
    if several:
        for part, fields in mine.items():
            for budget in ("retention", "tokens"):
                if budget in fields:
                    raise VTCError(f"method-options: {part}.{budget} is given by --{budget}")
    for share in sorted(shares, reverse=True):
        yield Candidate(name, share, options=mine, positions=rule)
    if tokens and several and in_front(parts) is None:
        if default:
            return
        raise VTCError(f"tokens: {name!r} has a budget for each of its methods, give retentions")
    for count in sorted(tokens, reverse=True):
        yield Candidate(name, None, options=mine, tokens=count, positions=rule)
