"""The figures: inline SVG that follows the page's colours, and the same as PNG.

Methods differ by colour and by marker, and every line carries its name. Of many methods a figure shows
some (`Results.shown`), the others as faint lines; the page has all of them, to be chosen among.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vtc.errors import VTCError
from vtc.eval.report.results import Entry, Results, budget, cost

WIDE, NARROW = (10.0, 5.6), (4.2, 5.4)  # inches; of screens and paper, of phones
#: colours by the name of their variable in the stylesheet; the light values are those of a PNG
COLOURS = {
    "paper": "#fdfdfb", "ink": "#1b1f27", "faint": "#565d6a", "rule": "#d8d9d3",
    "s1": "#0072b2", "s2": "#c14a00", "s3": "#00805e", "s4": "#c2388f", "s5": "#96700a",
    "s6": "#6a4fc4", "s7": "#6b6f78", "s8": "#08798b", "s9": "#b3142f", "s10": "#5f7d00",
}  # fmt: skip
SERIES = [name for name in COLOURS if re.fullmatch(r"s\d+", name)]
# As many as have no factor in common with the number of colours, so that pairs repeat late; methods of
# one colour have markers that stand side by side here, or one further
MARKERS = "o^XsvP<Dp>d"
MARKER, RING = 7, 14  # diameters in points
WORSE, BETTER = "#c85214", "#0060aa"  # of the heat map, as --worse and --better


def style(results: Results, label: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in every figure; those that figures start with have
    colours of their own."""
    number = _number(results, label)
    return COLOURS[SERIES[number % len(SERIES)]], MARKERS[number % len(MARKERS)]


def _number(results: Results, label: str) -> int:
    return list(dict.fromkeys([*results.shown, *results.labels])).index(label)


def against_retention(
    results: Results, metric: str, size: tuple[float, float] = WIDE, page: bool = False
) -> Any:
    """Accuracy against the share of patch tokens that was kept, with intervals; a figure.

    Args:
        page: with all methods, each in a group that `svg` marks, for a page that chooses among them.
    """
    labels, shown = results.labels, results.shown
    drawn = labels if page else shown
    size = (size[0], max(size[1], 0.22 * (len(drawn) + 2)))  # every name needs a line
    beside = min(max(1.5, 0.3 + 0.08 * max(map(len, drawn), default=0)), 0.5 * size[0])
    figure, axes = axes_beside(size, right=beside)  # for the names at the ends of the lines
    _full_band(results, axes)
    ends = []
    shares = [entry.kept for entry in results.entries if not entry.full and entry.kept > 0]
    for number, label in enumerate(labels):
        colour, marker = style(results, label)
        # so that intervals stay apart, of those that are seen at the beginning at least
        rank = shown.index(label) if label in shown else number % len(shown)
        shift = 1 + 0.016 * (rank - (len(shown) - 1) / 2)
        mine = [e for e in results.entries if e.label == label and e.kept > 0]
        line = sorted((e for e in mine if e.retention is not None), key=lambda e: -e.kept)
        xs, ys = [e.kept * shift for e in line], [100 * e.accuracy.value for e in line]
        if line and len(shown) < len(labels):
            axes.plot(xs, ys, color=COLOURS["rule"], linewidth=0.9, zorder=1.2)
        if label not in drawn:
            continue
        with _group(axes, number):
            if line:
                axes.plot(xs, ys, color=colour, linewidth=1.6, zorder=2)
                ends.append((xs[-1], ys[-1], label, colour))
            for entry in mine:
                own = entry.retention is None
                _point(axes, entry.kept * shift, entry, colour, marker, hollow=own)
        if not line and mine:
            ends.append((mine[-1].kept, 100 * mine[-1].accuracy.value, label, colour))
    if results.full is not None:
        axes.plot(
            1, 100 * results.full.accuracy.value, "*", markersize=11, color=COLOURS["ink"], zorder=4
        )
    axes.set_xscale("log")
    ticks = sorted({r for r in results.retentions if r is not None} | {1.0})
    if not any(r is not None for r in results.retentions):
        ticks = sorted({round(share, 3) for share in shares} | {1.0})
    axes.set_xticks(ticks, [f"{100 * tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(1.12, min([*shares, 0.5]) * 0.9)  # much kept on the left
    axes.set_xlabel("patch tokens kept (%, logarithmic)")
    axes.set_ylabel(f"{metric} (%)")
    _labels(axes, ends, (size[0] - beside - 0.62, size[1]), labels)
    return figure


def against_cost(
    results: Results, metric: str, size: tuple[float, float] = WIDE, page: bool = False
) -> Any:
    """Accuracy against time to the first token, or visual tokens when nothing was timed; the
    Pareto front is marked, with the retentions of its entries. A figure.

    Args:
        page: as for `against_retention`; a figure with many methods then has no legend.
    """
    figure, axes = axes_beside(size, right=0.2)
    timed, many = results.timed, len(results.shown) < len(results.labels)
    shown = [e for e in results.entries if not math.isnan(cost(e, timed))]
    for number, label in enumerate(results.labels):
        colour, marker = style(results, label)
        mine = [e for e in shown if e.label == label]
        line = sorted((e for e in mine if e.retention), key=lambda e: -(e.retention or 0.0))
        xs, ys = [cost(e, timed) for e in line], [100 * e.accuracy.value for e in line]
        if line and many:
            axes.plot(xs, ys, color=COLOURS["rule"], linewidth=0.9, zorder=1.2)
        if not mine or not (page or label in results.shown):
            continue
        axes.plot([], [], marker, color=colour, markersize=MARKER, label=label)
        with _group(axes, number):
            axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.5, zorder=1.5)
            for entry in mine:
                if timed and entry.prefill is not None:
                    axes.plot(
                        [entry.prefill.low, entry.prefill.high], [100 * entry.accuracy.value] * 2,
                        color=colour, linewidth=1.0, zorder=2,
                    )  # fmt: skip
                hollow = entry.retention is None
                _point(axes, cost(entry, timed), entry, colour, marker, hollow)
    if results.full in shown:
        axes.plot(
            cost(results.full, timed), 100 * results.full.accuracy.value, "*", markersize=11,
            color=COLOURS["ink"], zorder=4, linestyle="none", label="full model",
        )  # fmt: skip
    shown = sorted(shown, key=lambda e: cost(e, timed))
    _front(axes, [e for e in shown if e.front], timed)
    axes.margins(0.5 / (size[0] - 1.8), 0.06)  # half an inch for the retentions beside the front
    axes.set_ylabel(f"{metric} (%)")
    axes.set_xlabel(
        "time to the first token, full model = 1" if timed else "visual tokens the model reads"
    )
    _front_retentions(axes, results, shown, timed)
    if not (page and many):  # much cost for little accuracy: this corner is empty
        axes.legend(loc="lower right", frameon=False, fontsize=9, handletextpad=0.3)
    return figure


def heat(results: Results, metric: str) -> Any:
    """Score by question type, method (of many those of `Results.shown`) and retention, shaded by the
    loss against the full model; a figure with a panel a retention."""
    pyplot = _matplotlib()
    labels, kinds = results.shown, results.kinds
    panels = [
        entries
        for r in results.retentions
        if (entries := [entry for entry in results.at(r) if entry.label in labels])
    ]
    tall = 0.36 * len(kinds) + 1.9
    figure, grid = pyplot.subplots(
        len(panels), 1, figsize=(2.2 + 0.8 * (len(labels) + 1), tall * len(panels)), squeeze=False
    )
    for axes, entries in zip(grid[:, 0], panels, strict=True):
        columns = [results.full, *entries] if results.full else entries
        for x, entry in enumerate(columns):
            for y, kind in enumerate(kinds):
                value, count = entry.kinds[kind]
                if not count:
                    continue
                colour, alpha = shade(results, entry, kind)
                axes.add_patch(
                    pyplot.Rectangle((x - 0.5, y - 0.5), 1, 1, color=colour, alpha=alpha, lw=0)
                )
                axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=9)
        axes.set_xlim(-0.5, len(labels) + 0.5)
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [e.label for e in columns], rotation=30, ha="left")
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(kinds)), [kind or "all" for kind in kinds])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(
            f"{metric} (%) at {budget(entries[0].retention)}; orange: below the full model",
            loc="left", fontsize=10, pad=12,
        )  # fmt: skip
    figure.tight_layout()
    return figure


def shade(results: Results, entry: Entry, kind: str) -> tuple[str, float]:
    """Colour and opacity of a cell of the heat map: strongest at a change of 50 points."""
    if results.full is None or entry.full:
        return WORSE, 0.0
    value, reference = entry.kinds[kind][0], results.full.kinds[kind][0]
    change = 0.0 if math.isnan(value - reference) else value - reference
    return (BETTER if change > 0 else WORSE), round(0.75 * min(1.0, abs(change) / 0.5), 3)


# -- parts -------------------------------------------------------------------------------------


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise VTCError("figures need matplotlib: pip install 'vtc-vlm[eval]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcdefaults()
    pyplot.rcParams.update(
        {
            "font.size": 10,
            "svg.fonttype": "none",
            "text.parse_math": False,  # a label may hold dollar signs
            "svg.hashsalt": "vtc",  # the same page from the same runs
            "figure.facecolor": COLOURS["paper"],
            "axes.facecolor": COLOURS["paper"],
            "axes.edgecolor": COLOURS["faint"],
            "axes.labelcolor": COLOURS["ink"],
            "axes.titlecolor": COLOURS["ink"],
            "text.color": COLOURS["ink"],
            "xtick.color": COLOURS["faint"],
            "ytick.color": COLOURS["faint"],
            "xtick.labelcolor": COLOURS["ink"],
            "ytick.labelcolor": COLOURS["ink"],
            "grid.color": COLOURS["rule"],
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    return pyplot


def axes_beside(size: tuple[float, float], right: float) -> tuple[Any, Any]:
    """Axes with `right` inches beside them."""
    pyplot = _matplotlib()
    figure, axes = pyplot.subplots(figsize=size)
    figure.subplots_adjust(left=0.62 / size[0], right=1 - right / size[0], top=0.97, bottom=0.1)
    axes.grid(True, axis="y", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _point(
    axes: Any, x: float, entry: Entry, colour: str, marker: str, hollow: bool = False
) -> None:
    """A marker with its interval; hollow for a count that the method chose."""
    accuracy = entry.accuracy
    if not math.isnan(accuracy.low):
        axes.plot(
            [x, x], [100 * accuracy.low, 100 * accuracy.high], color=colour, linewidth=1, zorder=2
        )
    axes.plot(
        x, 100 * accuracy.value, marker, color=colour, markersize=MARKER, zorder=3,
        markeredgewidth=1.4, markerfacecolor=COLOURS["paper"] if hollow else colour,
    )  # fmt: skip


def _full_band(results: Results, axes: Any) -> None:
    """The uncompressed model: a line with its interval behind it, named at its right end."""
    if results.full is None:
        return
    accuracy = results.full.accuracy
    axes.axhspan(
        100 * accuracy.low, 100 * accuracy.high, color=COLOURS["rule"], alpha=0.6, lw=0, zorder=0
    )
    axes.axhline(100 * accuracy.value, color=COLOURS["ink"], linewidth=1, dashes=(5, 3), zorder=1)
    axes.annotate(
        f"full model {100 * accuracy.value:.1f}", (1, 100 * accuracy.value),
        xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
        va="center", fontsize=9, annotation_clip=False,
    )  # fmt: skip


@contextmanager
def _group(axes: Any, number: int) -> Iterator[None]:
    """What is plotted inside belongs to method `number`: `svg` finds it by its id."""
    before = len(axes.lines)
    yield
    for part, line in enumerate(axes.lines[before:]):
        line.set_gid(f"method-{number}-{part}")


def _labels(
    axes: Any,
    ends: list[tuple[float, float, str, str]],
    size: tuple[float, float],
    labels: Sequence[str],
) -> None:
    """Names at the ends of lines, moved apart until none covers another, and cut where they would leave
    the figure.

    Args:
        ends: of each line: x, y, label, colour.
        size: width of the axes and height of the figure, inches.
        labels: of all methods, for the ids that `svg` finds.
    """
    low, high = axes.get_ylim()
    end = 1 + 0.11 / size[0]
    room = 0.19 / (size[1] * 0.87) * (high - low)  # a line of text, in data units
    taken = [t.xy[1] for t in axes.texts]  # the full model's name stays where it is
    beside = axes.figure.get_figwidth() * (1 - axes.figure.subplotpars.right)
    most = int((beside - 0.3) / 0.07)  # letters beside the axes, in bold
    ends = sorted(ends, key=lambda end: -end[1])
    places = _apart([end[1] for end in ends], room, taken, low)
    for (x, y, label, colour), at in zip(ends, places, strict=True):
        short = label if len(label) <= most else f"{label[: most - 1]}…"
        name = axes.annotate(
            short, (x, y), xytext=(end, (at - low) / (high - low)), textcoords="axes fraction",
            color=colour, fontsize=9.5, va="center", fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 2, "shrinkB": 6,
                        "relpos": (0, 0.5)},
            annotation_clip=False,
        )  # fmt: skip
        name.set_gid(f"name-{labels.index(label)}")
        name.arrow_patch.set_gid(f"method-{labels.index(label)}-name")


def _apart(
    values: Sequence[float], room: float, taken: Sequence[float], floor: float = -math.inf
) -> list[float]:
    """Places near `values` (falling), `room` apart from each other and from `taken`, none below
    `floor` as long as there is room above it."""
    places: list[float] = []
    for value in values:
        place = min(value, places[-1] - room) if places else value
        for other in sorted(taken, reverse=True):
            if abs(place - other) < room:
                place = other - room
        places.append(place)
    for index in reversed(range(len(places))):
        least = floor if index == len(places) - 1 else places[index + 1] + room
        if places[index] < least:
            places[index] = least
            for other in sorted(taken):
                if abs(places[index] - other) < room:
                    places[index] = other + room
    return places


def _front(axes: Any, front: Sequence[Entry], timed: bool) -> None:
    """The Pareto front as steps: what accuracy a cost buys."""
    if not front:
        return
    axes.step(
        [cost(e, timed) for e in front], [100 * e.accuracy.value for e in front],
        where="post", color=COLOURS["ink"], linewidth=1.1, dashes=(2, 2), zorder=1.8,
    )  # fmt: skip
    axes.plot(
        [cost(e, timed) for e in front], [100 * e.accuracy.value for e in front], "o",
        markersize=RING, markerfacecolor="none", markeredgecolor=COLOURS["ink"],
        markeredgewidth=1.1, zorder=3.5, linestyle="none",
    )  # fmt: skip


def _front_retentions(axes: Any, results: Results, shown: Sequence[Entry], timed: bool) -> None:
    """The retention of every entry on the front, above its ring where it covers nothing.

    Args:
        shown: all entries of the figure, by cost.
    """
    axes.autoscale_view()  # places below are in pixels
    taken = [box for entry in shown for box in _extents(axes, entry, timed)]
    for entry in shown:
        if not entry.front or entry.full:
            continue
        at = cost(entry, timed), 100 * entry.accuracy.value
        text = axes.annotate(
            entry.budget, at, (0, 0), textcoords="offset points", va="bottom", fontsize=9,
            fontweight="bold", color=style(results, entry.label)[0],
        )  # fmt: skip
        # from left to right: above it there are only entries that have their place
        for rise, side in itertools.product(range(4, 200, 3), ("right", "left")):
            text.set_horizontalalignment(side)
            text.xyann = (-5 if side == "right" else 5, rise)
            box = text.get_window_extent().padded(2)
            if not any(box.overlaps(other) for other in taken):
                break
        if box.y1 > axes.figure.bbox.y1:  # a crowded front; the table has it
            text.remove()
            continue
        taken.append(box)
        if rise > 12:
            arrow = {"arrowstyle": "-", "color": COLOURS["faint"], "lw": 0.6, "shrinkB": 7}
            axes.annotate("", at, text.xyann, textcoords="offset points", arrowprops=arrow)


def _extents(axes: Any, entry: Entry, timed: bool) -> list[Any]:
    """Boxes of an entry's marker or ring and of its intervals, in pixels."""
    from matplotlib.transforms import Bbox

    x, y = cost(entry, timed), 100 * entry.accuracy.value
    low, high = 100 * entry.accuracy.low, 100 * entry.accuracy.high
    lines = [] if math.isnan(low) else [[(x, low), (x, high)]]
    if timed and entry.prefill is not None:
        lines.append([(entry.prefill.low, y), (entry.prefill.high, y)])
    radius = (RING if entry.front else MARKER) / 2 * axes.figure.dpi / 72
    return [
        Bbox(axes.transData.transform([(x, y)] * 2)).padded(radius * math.sqrt(0.5)),
        *(Bbox(axes.transData.transform(line)) for line in lines),
    ]


# -- output ------------------------------------------------------------------------------------


def svg(figure: Any, name: str, label: str, off: Collection[int] = ()) -> str:
    """The figure as an `<svg>` for a page, drawn in the page's own colours. What belongs to a method
    has its number as `data-method`, its name as `data-name`.

    Args:
        name: unique in the page, for the ids.
        label: what the figure shows, for readers who do not see it.
        off: methods that are not to be seen at first; they get the class `off`.
    """
    from html import escape

    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)

    def marked(found: re.Match[str]) -> str:
        off_ = ' class="off"' if int(found[2]) in off else ""
        return f'<g data-{found[1]}="{found[2]}"{off_}>'

    text = re.sub(r'<g id="(method|name)-(\d+)(?:-\w+)?">', marked, text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    for variable, colour in COLOURS.items():
        text = re.sub(colour, f"var(--{variable})", text, flags=re.I)
    head = re.search(r'viewBox="[^"]*"', text)
    inner = text[text.index(">") + 1 :]
    box = head.group(0) if head else ""
    return f'<svg {box} role="img" aria-label="{escape(label)}">{inner.strip()}'


def swatch(results: Results, label: str) -> str:
    """The marker of a method as a small `<svg>` in the colour of its line."""
    import numpy as np
    from matplotlib.markers import MarkerStyle
    from matplotlib.transforms import Affine2D

    marker = MarkerStyle(style(results, label)[1])
    # large, so that curves become many corners
    larger = Affine2D().scale(600, -600)
    shape = marker.get_path().transformed(marker.get_transform() + larger)
    corners = np.asarray(shape.to_polygons()[0]) / 100
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in corners.tolist())
    colour = f"var(--{SERIES[_number(results, label) % len(SERIES)]})"
    return (
        '<svg class="swatch" viewBox="-8 -5 16 10" aria-hidden="true">'
        f'<path d="M-8 0H8" stroke="{colour}"/><polygon points="{points}" fill="{colour}"/></svg>'
    )


def png(figure: Any, path: Path) -> None:
    """The figure as a PNG."""
    from matplotlib import pyplot

    figure.savefig(path, dpi=160, metadata={"Software": None})
    pyplot.close(figure)
