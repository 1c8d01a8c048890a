"""The figures of a run as a table for people."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vtc.eval.efficiency.lines import Line, Measure

if TYPE_CHECKING:
    from rich.table import Table

#: header -> figure; the cells are ratios to the uncompressed model
RATIOS = {
    "vision": "vision_time",
    "prefill": "prefill_time",
    "first token": "ttft",
    "decode": "decode_speed",
    "memory": "peak_memory",
    "cache": "kv_cache",
    "FLOPs": "flops",
}
#: figures whose ratio to the ideal stands behind it -> its header
IDEALS = {"prefill_time": "prefill to ideal", "ttft": "to ideal"}
HEADER = ["method", "share", "tokens", "selection"]
for _header, _name in RATIOS.items():
    HEADER += [_header, *([IDEALS[_name]] if _name in IDEALS else [])]

CAPTION = (
    "share: of patch tokens to keep, of a+b in front of the language model. tokens: visual tokens that "
    "enter a layer of the language model, the mean over its layers, separators included. "
    "Ratios to the uncompressed model of the same run; under times the quartiles over the rounds. "
    "selection: all that vtc adds, in ms and as a share of the time to the first token; what is added "
    "inside the language model is a part of prefill too. "
    "first token: vision, selection and prefill. to ideal: time to the first token against "
    "the vision tower as it is and the language model alone on as many tokens in every layer, prefill "
    "against the latter. decode: tokens a second, more is better."
)


def cells(line: Line, extrapolated: bool = False) -> list[str]:
    """One row under `HEADER`.

    Args:
        extrapolated: figures at the published depth.
    """
    figures = line.extrapolated if extrapolated else line.measures
    share = "own" if line.retention is None else f"{line.retention:g}"
    start = [line.method, share]
    if not figures:
        return [*start, *["-"] * (len(HEADER) - 2)]
    row = [*start, _tokens(line, extrapolated), _selection(figures)]
    for name in RATIOS.values():
        row.append(_cell(figures.get(name)))
        if name in IDEALS:
            row.append(_cell(figures.get(name), ideal=True))
    return row


def _tokens(line: Line, extrapolated: bool) -> str:
    if line.tokens is None:
        return "-"
    if line.lengths is None or line.prompt is None:
        return str(line.tokens)
    mean = statistics.fmean(line.lengths) - line.prompt + line.tokens
    if extrapolated and line.average_tokens is not None:
        mean = line.average_tokens
    return f"{mean:.0f}"


def table(title: str, lines: Sequence[Line], extrapolated: bool = False) -> Table:
    """A `rich` table."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    out = Table(title=title, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for name in HEADER:
        name, left = name.replace(" ", "\n"), name == "method"
        out.add_column(name, justify="left" if left else "right", no_wrap=True)
    before = None
    for line in lines:
        if before is not None and before != (line.method, line.attention):
            out.add_section()
        before = (line.method, line.attention)
        out.add_row(*(escape(cell) for cell in cells(line, extrapolated)))
    return out


def _selection(figures: Mapping[str, Measure]) -> str:
    parts = [figures[name] for name in ("selection_time", "inside_time") if name in figures]
    time, whole = sum(part.value for part in parts), figures.get("ttft")
    if whole is None or not time:
        return "-"
    return f"{1e3 * time:.1f}\n{time / whole.value:.1%}"


def _cell(figure: Measure | None, ideal: bool = False) -> str:
    ratio = None if figure is None else figure.ideal if ideal else figure.ratio
    if ratio is None:
        return "-"
    if ratio.low == ratio.high:
        return f"{ratio.median:.2f}"
    return f"{ratio.median:.2f}\n{ratio.low:.2f}-{ratio.high:.2f}"
