"""The support table: what the cells of the matrix say, as Markdown."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers

from tests.families import ways
from vtc.registry import method_class

#: `(mode, side, positions)` to `"ok"` or why not
Cells = dict[tuple[str, ...], str]
#: by `(family, with clips, method)`
Results = dict[tuple[str, bool, str], Cells]

_HEAD = """# Which methods work on which models

Written by `python -m tests.families.matrix --output docs/support.md`, which runs every cell on tiny
random models of each family (transformers {version}, torch {torch}); do not edit. {cells} cells,
{minutes:.0f} minutes of one core.

A cell is one family, one method, one way to run, one side of padding and one position policy. Run for
this table:

* ways to run: {modes};
* padding: {sides};
* position policies: {positions}.

A cell holds when every row of a ragged batch gives what a reference gives that does not go through
`vtc`: equal tokens, and logits within 2e-3 for a plain forward. `sparsevlm` alone has no such reference:
a row of its batch is compared with the same row alone. Sampling and assisted decoding run row by row,
each row with the padding it has in the batch. Methods with the same marks everywhere share a column.

| mark | meaning |
|---|---|
| yes | all cells hold |
| a number | a remark: refused with a reason, not possible without `vtc` either, or what the method \
needs beside the model |
| **no** | a cell fails: a bug |
"""

_PLACES = {
    "boundary": """
## In front of the language model

The reference is the language model, fed by hand with the shortened prompt. The column `1.0` says that
retention 1.0 gives the very bits of the bare model.

The methods run at retention 0.5; clips have one budget, or with every second method one per frame.
Mllama reads images by cross-attention, so the position policies say nothing there; its reference is the
model whose vision tower returns the kept patches. DocOwl1.5 is a stand-in of the published remote code,
which itself needs an older transformers and was not run; its reference is the model that is given what
is left of the tiles. Batches of both have no padding. `aya_vision` has no adapter and shows the
fallback.
""",
    "pixels": """
## In front of the vision tower

The reference is the bare model on a small picture, in a prompt put together by hand. Positions are those
of the small picture.
""",
    "layers": """
## Inside the language model

The methods run at their paper's setting on language models of five layers. The reference is the bare
model whose layers hide, by masks, what the method drops of each row alone. `sparsevlm` writes into the
tokens that it keeps, which no mask can: its rows are compared with themselves alone. Positions are never
changed, so there is one policy. Which tokens each method drops is tested against official outputs and by
hand elsewhere (`tests/golden/inside_lm`, `tests/layers`).
""",
}


def table(
    results: Results,
    modes: Sequence[str],
    positions: Sequence[str],
    condition: Callable[[str, str], str],
    minutes: float,
) -> str:
    """The page.

    Args:
        results: of every job.
        modes: the ways to run that the tables of methods are about.
        positions: the policies.
        condition: `(family, method)` to what the method needs beside the model.
        minutes: that the cells took.
    """
    called = {job: _cells(cells, ways.WAYS) for job, cells in results.items()}
    asked = {job: _cells(cells, modes) for job, cells in results.items()}
    keys = [key for cells in asked.values() for key in cells]
    used, sides = (list(dict.fromkeys(key[i] for key in keys)) for i in (0, 1))
    lines = [
        _HEAD.format(
            version=transformers.__version__,
            torch=torch.__version__.split("+")[0],
            cells=sum(map(len, [*asked.values(), *called.values()])),
            minutes=minutes,
            modes=", ".join(used),
            sides=", ".join(sides),
            positions=", ".join(positions),
        )
    ]
    methods = list(dict.fromkeys(method for _, _, method in asked if method != "none"))
    for place, text in _PLACES.items():
        mine = [method for method in methods if method_class(method).where == place]
        if mine:
            lines += [text, *_place(asked, mine, used, condition)]
    return "\n".join([*lines, *ways_table(called)]) + "\n"


def _place(
    results: Results,
    methods: Sequence[str],
    modes: Sequence[str],
    condition: Callable[[str, str], str],
) -> list[str]:
    """The table of the methods of one place, and its remarks."""
    families = list(dict.fromkeys((f, v) for f, v, _ in results))
    remarks: dict[str, int] = {}
    whole = ["none"] if method_class(methods[0]).where == "boundary" else []
    marks: dict[str, list[str]] = {name: [] for name in (*whole, *methods)}
    for family, video in families:
        for method, column in marks.items():
            cells = results.get((family, video, method), {})
            needed = condition(family, method) if "ok" in cells.values() else ""
            column.append(_mark(cells, method, modes, needed, remarks))
    alike: dict[tuple[str, ...], list[str]] = {}
    for method in methods:
        alike.setdefault(tuple(marks[method]), []).append(method)
    columns, named = [("1.0", marks["none"])] if whole else [], []
    letters = _letters()
    for column, group in alike.items():
        if len(group) == 1:
            columns.append((f"`{group[0]}`", list(column)))
            continue
        letter = next(letters) if len(alike) > 1 else "all"
        columns.append((f"**{letter}**", list(column)))
        named.append(f"* **{letter}**: " + ", ".join(f"`{method}`" for method in group))
    lines = [*named, ""] if named else []
    lines += [
        "| family | " + " | ".join(name for name, _ in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for row, (family, video) in enumerate(families):
        cells = " | ".join(column[row] for _, column in columns)
        lines.append(f"| {family}{' + clips' * video} | {cells} |")
    if remarks:
        lines += ["", "Remarks:", "", *(f"{number}. {text}" for text, number in remarks.items())]
    return lines


def _letters() -> Iterator[str]:
    yield from string.ascii_uppercase
    yield from (f"A{letter}" for letter in string.ascii_uppercase)


def _mark(
    cells: Cells, method: str, modes: Sequence[str], needed: str, remarks: dict[str, int]
) -> str:
    """What a table says of one family and method; `remarks` get what it refers to."""
    if not cells:
        return "-"
    soft: dict[str, set[str]] = {}
    for (mode, _, _), text in cells.items():
        if text.startswith(("upstream", "refused")):
            soft.setdefault(text, set()).add(mode)
    said = []
    for text, failing in soft.items():
        where = ", ".join(mode for mode in modes if mode in failing) + ": "
        where = "" if failing == {key[0] for key in cells} else where
        # methods that are refused in the same words share a remark, and so a column
        for before in ("method: ", "but "):
            text = text.replace(f"{before}{method!r} ", f"{before}this one ")
        said.append(where + text)
    notes = [str(remarks.setdefault(text, len(remarks) + 1)) for text in (*said, needed) if text]
    if any(text.startswith("FAILED") for text in cells.values()):
        return " ".join(["**no**", *notes])
    return " ".join(["yes" if "ok" in cells.values() else "", *notes]).strip()


_WAYS_HEAD = """
## Ways to call

Beside one forward or one `generate` over a batch. Every cell stands for the methods {methods}, the
position policies and, where there is padding, both sides of it. It holds when the logits of every row,
and of every step of decoding, are those of the language model alone on the prompt shortened by hand;
two turns are compared with the whole conversation, packed samples with each of them alone.

| column | what is called |
|---|---|
{ways}

| mark | meaning |
|---|---|
| yes | it holds |
| yes and a number | it holds but for what the remark says |
| refused | an error says that it cannot be done and why |
| - | not possible without `vtc` either |
| **no** | a bug |

Mllama and DocOwl1.5, whose placeholders stay as they are, were not called in these ways.
"""


def _cells(cells: Cells, modes: Any) -> Cells:
    return {key: text for key, text in cells.items() if key[0] in modes}


def ways_table(called: Results) -> list[str]:
    """The table of families and ways, as lines of Markdown; none where no way was run."""
    names = list(dict.fromkeys(key[0] for cells in called.values() for key in cells))
    if not names:
        return []
    said = [f"| {n} | {' '.join(str(ways.WAYS[n].__doc__).split())} |" for n in names]
    used = list(dict.fromkeys(job[2] for job, cells in called.items() if cells))
    methods = ", ".join(f"`{method}`" for method in used)
    lines = [
        _WAYS_HEAD.format(methods=methods, ways="\n".join(said)),
        "| family | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    remarks: dict[str, int] = {}
    for family, video in dict.fromkeys(job[:2] for job, cells in called.items() if cells):
        marks = []
        for name in names:
            cells = {
                (method, *key[1:]): text
                for (f, v, method), some in called.items()
                for key, text in some.items()
                if (f, v, key[0]) == (family, video, name)
            }
            marks.append(_way_mark(cells, remarks))
        lines.append(f"| {family}{' + clips' * video} | " + " | ".join(marks) + " |")
    if remarks:
        lines += ["", "Remarks:", "", *(f"{number}. {text}" for text, number in remarks.items())]
    return lines


def _way_mark(cells: Cells, remarks: dict[str, int]) -> str:
    """What the table says of one family and way: never a bare yes where a cell does not hold."""
    if not cells:
        return ""
    soft: dict[str, list[tuple[str, ...]]] = {}
    for key, text in cells.items():
        if text != "ok":
            soft.setdefault(text, []).append(key)
    if any(text.startswith("FAILED") for text in soft):
        return "**no**"
    notes = []
    for text, keys in soft.items():
        where = ""
        for at, what in ((0, "methods"), (1, "padding"), (2, "positions")):
            every, mine = ({key[at] for key in some} for some in (cells, keys))
            if mine != every:
                where += f"{what} {', '.join(sorted(mine))}: "
        notes.append(str(remarks.setdefault(where + text, len(remarks) + 1)))
    whole = "yes" if "ok" in cells.values() else ""
    refused = "refused" if all(text.startswith("refused") for text in soft) else "-"
    return " ".join([whole or refused, *notes]) if notes else "yes"
