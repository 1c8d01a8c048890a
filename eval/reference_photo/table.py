"""Accuracy of every method at every retention, over all questions and over some tasks alone.

Run: ``python -m vtc.eval.reference_photo.table RUN --kinds garment,color``
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from vtc.errors import VTCError
from vtc.eval.common.records import Answer, read_answers
from vtc.eval.common.settings import FULL


def accuracies(answers: Iterable[Answer], kinds: Sequence[str] = ()) -> dict[str, float]:
    """Mean score of each setting, over the questions of `kinds`, or over all.

    Raises:
        VTCError: no question is of these kinds.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        if answer.score is not None and (not kinds or answer.kind in kinds):
            found[answer.setting].append(answer.score)
    if not found:
        raise VTCError(f"kinds: got {', '.join(kinds)}, and no question is of these")
    return {setting: sum(scores) / len(scores) for setting, scores in found.items()}


def table(answers: Sequence[Answer], kinds: Sequence[str]) -> str:
    """In Markdown, in percent: for each method its accuracy over all questions, and behind a slash over
    those of `kinds`; first who is best at the lowest retention. A coarser picture, seen with all tokens,
    stands under the share of its pixels.

    Args:
        answers: of a run.
        kinds: tasks that are shown alone.
    """
    whole, part = accuracies(answers), accuracies(answers, kinds)
    cells: dict[str, dict[float, str]] = defaultdict(dict)
    rank: dict[str, dict[float, float]] = defaultdict(dict)
    for setting, share in whole.items():
        method, _, rest = setting.partition("@")
        number, brace, options = rest.partition("{")
        if setting == FULL.key or not number.replace(".", "").isdigit():
            continue
        fields = json.loads(brace + options) if brace else {}
        name, column = method, float(number)
        if "pixels" in fields:
            name, column = "a coarser picture", fields["pixels"]
        elif fields:
            said = (f"{key}={value}" for key, value in fields.items())
            name = f"{method} ({', '.join(said)})"
        cells[name][column] = f"{100 * share:.1f} / {100 * part[setting]:.1f}"
        rank[name][column] = share
    columns = sorted({number for row in cells.values() for number in row}, reverse=True)
    names = sorted(
        cells,
        key=lambda name: [-rank[name].get(number, -1.0) for number in reversed(columns)],
    )
    lines = [
        f"All tokens: {100 * whole[FULL.key]:.1f} / {100 * part[FULL.key]:.1f}",
        "",
        f"| method | {' | '.join(f'{100 * number:g} %' for number in columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    lines += [f"| {n} | {' | '.join(cells[n].get(c, '') for c in columns)} |" for n in names]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of an accuracy run")
    parser.add_argument("--kinds", required=True, metavar="LIST", help="tasks that are shown alone")
    args = parser.parse_args(argv)
    try:
        print(table(list(read_answers(args.run)), args.kinds.split(",")), end="")
    except VTCError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
