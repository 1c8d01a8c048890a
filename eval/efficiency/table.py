"""The figures of a run as a table for people."""

from __future__ import annotations

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
HEADER = ["method", "share", "tokens", "selection", *RATIOS]
HEADER.insert(HEADER.index("first token") + 1, "to ideal")

CAPTION = (
    "share: of patch tokens to keep. tokens: visual tokens of the prompt, separators included. "
    "Ratios to the uncompressed model of the same run; under times the quartiles over the rounds. "
    "selection: all that vtc adds, in ms and as a share of the time to the first token. "
    "first token: vision, selection and prefill. to ideal: time to the first token against "
    "the vision tower as it is and the language model alone on as many tokens. "
    "decode: tokens a second, more is better."
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
    row = [*start, "-" if line.tokens is None else str(line.tokens), _selection(figures)]
    for name in RATIOS.values():
        row.append(_cell(figures.get(name)))
        if name == "ttft":
            row.append(_cell(figures.get(name), ideal=True))
    return row


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
    time, whole = figures.get("selection_time"), figures.get("ttft")
    if time is None or whole is None or not time.value:
        return "-"
    return f"{1e3 * time.value:.1f}\n{time.value / whole.value:.1%}"


def _cell(figure: Measure | None, ideal: bool = False) -> str:
    ratio = None if figure is None else figure.ideal if ideal else figure.ratio
    if ratio is None:
        return "-"
    if ratio.low == ratio.high:
        return f"{ratio.median:.2f}"
    return f"{ratio.median:.2f}\n{ratio.low:.2f}-{ratio.high:.2f}"
