"""The page of a tuning run: what was found, the front, the losers and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtc.eval import pages
from vtc.eval.report import charts
from vtc.eval.tune.costs import SAID
from vtc.eval.tune.promise import percent_down
from vtc.eval.tune.result import QUALITY, plain_yaml

if TYPE_CHECKING:
    from vtc.eval.tune.result import Tuned
    from vtc.eval.tune.search import Standing


def page(result: Tuned, output: str) -> str:
    """The page as text.

    Args:
        output: name of the configuration file.
    """
    from markupsafe import Markup

    figures = {}
    for name, size in (("wide", charts.WIDE), ("narrow", charts.NARROW)):
        label = "Quality and cost of all settings: the numbers are in the table below"
        figures[name] = Markup(charts.svg(front(result, size), f"front-{name}", label))
    best = result.best
    return pages.render(
        "tune.html",
        title=f"Tuned for {100 * result.target:g} %: {result.model}",
        lead=(
            f"{result.questions:,} questions about {result.searched + result.unseen:,} images; "
            f"{len(result.standings)} settings."
        ),
        sections=[
            ("short", "In short"), ("front", "Quality and cost"), ("settings", "All settings"),
            ("how", "How it was found"),
        ],
        scripts=["sort.js"],
        result=result,
        output=output,
        summary=result.sentences(),
        figures=figures,
        yaml=plain_yaml(result.config),
        best_yaml=plain_yaml(best.candidate.config()) if best else "",
        rows=[_row(result, standing) for standing in result.standings],
        what=QUALITY[result.quality_of],
        cost=SAID[result.cost_of],
        cost_short={"time": "First token", "tokens": "Tokens", "memory": "Memory"}[result.cost_of],
        percent=_percent,
        percent_down=percent_down,
    )  # fmt: skip


def _row(result: Tuned, standing: Standing) -> dict[str, Any]:
    key = standing.candidate.key
    fate = "promised" if standing is result.promised else standing.lost or "not needed"
    return {
        "label": standing.candidate.label,
        "promised": standing is result.promised,
        "front": standing in result.front(),
        "quality": standing.quality,
        "low": standing.low,
        "cost": standing.cost,
        "spread": result.spreads.get(key),
        "tokens": result.tokens[key],
        "search": standing.images,
        "confirm": 0 if standing.confirmed is None else len(standing.confirmed),
        "fate": fate,
    }


def front(result: Tuned, size: tuple[float, float]) -> Any:
    """Quality against cost; lines join the budgets of a method. A figure."""
    figure, axes = charts.axes_beside(size, right=0.2)
    known = [s for s in result.standings if s.seen is not None and not math.isnan(s.cost)]
    families = list(dict.fromkeys(s.candidate.family for s in known))
    for number, family in enumerate(families):
        colour = charts.COLOURS[charts.SERIES[number % len(charts.SERIES)]]
        marker = charts.MARKERS[number % len(charts.MARKERS)]
        mine = [s for s in known if s.candidate.family == family]
        mine.sort(key=lambda s: s.candidate.budget)
        axes.plot(
            [s.cost for s in mine], [100 * s.quality for s in mine], color=colour, linewidth=0.8,
            alpha=0.5, zorder=1.5,
        )  # fmt: skip
        method, positions, kind = family
        name = method + ("" if positions == "original" else f", {positions}")
        if kind == "by question":
            name += ", by question"
        elif kind == "tokens" and (method, positions, "retention") in families:
            name += ", by count"
        axes.plot([], [], marker, color=colour, markersize=charts.MARKER, label=name)
        for standing in mine:
            sure = standing.low is not None
            axes.plot(
                standing.cost, 100 * standing.quality, marker, color=colour, zorder=3,
                markersize=charts.MARKER, markeredgewidth=1.4,
                markerfacecolor=colour if sure else charts.COLOURS["paper"],
            )  # fmt: skip
            if standing.low is not None:
                axes.plot(
                    [standing.cost] * 2, [100 * standing.low, 100 * standing.quality],
                    color=colour, linewidth=1.4, zorder=2,
                )  # fmt: skip
    _marks(axes, result, known)
    axes.set_xlabel({
        "time": "time to the first token, full model = 1",
        "tokens": "visual tokens, full model = 1",
        "memory": "peak memory, full model = 1",
    }[result.cost_of])  # fmt: skip
    axes.set_ylabel("quality, full model = 100 %")
    axes.margins(0.06, 0.06)
    axes.legend(loc="best", frameon=False, fontsize=8, handletextpad=0.3)
    return figure


def _marks(axes: Any, result: Tuned, known: Sequence[Standing]) -> None:
    """The target, and a ring around what was promised."""
    ink = charts.COLOURS["ink"]
    axes.axhline(100 * result.target, color=ink, linewidth=1.0, dashes=(4, 3), zorder=1)
    steps = result.front()
    if steps:
        axes.step(
            [s.cost for s in steps], [100 * s.quality for s in steps], where="post", color=ink,
            linewidth=1.0, dashes=(1, 2), zorder=1.4,
        )  # fmt: skip
    if result.promised in known and result.promised is not None:
        axes.plot(
            result.promised.cost, 100 * result.promised.quality, "o", markersize=charts.RING,
            markerfacecolor="none", color=ink, zorder=4,
        )  # fmt: skip


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f}"
