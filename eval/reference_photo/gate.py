"""Which tasks are evidence: those the model does well, and much worse without the picture.

Run: ``python -m vtc.eval.reference_photo.gate RUN BLIND`` on two runs of the suite `photo`, the second
with ``--suite-option photo.blind=true``
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vtc.errors import VTCError
from vtc.eval.common.records import Answer, read_answers
from vtc.eval.common.settings import FULL

from .questions import TYPES

#: share of right answers, and how many more than without the picture
RIGHT, MORE = 0.6, 0.3


@dataclass(frozen=True)
class Task:
    """A type of question.

    Attributes:
        name: of the type.
        count: of questions.
        full: share of right answers of the uncompressed model.
        blind: the same without the picture.
        majority: share of the most frequent answer.
    """

    name: str
    count: int
    full: float
    blind: float
    majority: float

    @property
    def evidence(self) -> bool:
        """Whether the task passes; what words alone give away is the better of the two baselines."""
        return self.full >= RIGHT and self.full - max(self.blind, self.majority) >= MORE


def tasks(run: Iterable[Answer], blind: Iterable[Answer]) -> list[Task]:
    """All types of question, in the order of `TYPES`.

    Raises:
        VTCError: the two were not asked the same questions.
    """
    seeing, guessing = _full(run), _full(blind)
    if seeing.keys() != guessing.keys():
        raise VTCError("blind: got a run about other questions, allowed is one about the same")
    kinds: dict[str, list[str]] = defaultdict(list)
    for item, answer in seeing.items():
        kinds[answer.kind].append(item)
    return [
        Task(
            name,
            len(items := kinds[name]),
            sum(seeing[item].score or 0.0 for item in items) / len(items),
            sum(guessing[item].score or 0.0 for item in items) / len(items),
            Counter(seeing[item].answers[0] for item in items).most_common(1)[0][1] / len(items),
        )
        for name in TYPES
        if kinds[name]
    ]


def _full(answers: Iterable[Answer]) -> dict[str, Answer]:
    return {answer.item: answer for answer in answers if answer.setting == FULL.key}


def table(found: Iterable[Task]) -> str:
    """The tasks in Markdown, in percent."""
    lines = [
        "| task | questions | full | without the picture | majority | evidence |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for task in found:
        shares = (f"{100 * share:.1f}" for share in (task.full, task.blind, task.majority))
        cells = (task.name, str(task.count), *shares, "yes" if task.evidence else "no")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("blind", type=Path)
    args = parser.parse_args(argv)
    try:
        print(table(tasks(read_answers(args.run), read_answers(args.blind))), end="")
    except VTCError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
