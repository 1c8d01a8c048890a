"""`python -m vtc.eval accuracy`: methods x retentions over suites, resumable and sharded."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vtc
from vtc.commands.console import progress, stdout, waiting
from vtc.errors import VTCError
from vtc.eval.common.arguments import (
    add_settings,
    add_suite_option,
    command,
    names,
    planned,
    positive,
)
from vtc.eval.common.loading import load

if TYPE_CHECKING:
    from vtc.eval.accuracy.run import Run
    from vtc.eval.common.processes import Processes
    from vtc.eval.suites.base import Item, Suite

DESCRIPTION = """\
Ask a model the questions of one or more suites, without compression and with every method at every
retention. Each answer is on disk as soon as it is there: a run that was stopped goes on with the
same command, and rows that failed are asked again. Several processes share the work:
  accelerate launch --num_processes 2 -m vtc.eval accuracy ...
"""


def add(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "accuracy",
        help="methods x retentions over the questions of a suite",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", default="reference", help="hub id, folder, 'reference' (default) or 'photo'"
    )
    add_settings(parser)
    parser.add_argument("--suite", required=True, type=names, metavar="NAME,...")
    parser.add_argument(
        "--output",
        required=True,
        metavar="RUN",
        help="folder of the run; with several suites a folder each inside it",
    )
    parser.add_argument("--seeds", type=positive, default=3, help="of methods that draw, default 3")
    parser.add_argument(
        "--pixels",
        type=names,
        default=[],
        metavar="SHARE,...",
        help="ask the plain model about pictures with so few of their pixels, too: questions that it "
        "only then gets wrong are the hard ones at that retention",
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N questions")
    parser.add_argument("--batch-size", type=positive, default=8, help="questions, default 8")
    parser.add_argument("--data", metavar="FOLDER", help="local data, for suites that read some")
    add_suite_option(parser, "option of a suite, repeatable")
    parser.add_argument(
        "--prompt",
        metavar="TEMPLATE",
        help="text with {question} and perhaps {image}; default: the model's chat template",
    )
    parser.add_argument(
        "--any-code",
        action="store_true",
        help="go on with a run that other code or other package versions began",
    )
    parser.add_argument("--strict", action="store_true", help="exit status 1 when any row failed")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Plan, ask, sum up."""
    suites = _suites(args)
    chosen = planned(args, args.seeds, args.pixels)

    from vtc.eval.accuracy.run import Run
    from vtc.eval.common.processes import processes

    items = {suite.name: _items(suite, args.limit) for suite in suites}
    group = processes(args.device)
    with waiting(f"loading {args.model}", args.quiet or not group.main):
        loaded = load(args.model, group.device, args.dtype)
    for suite in suites:
        experiment = Run(
            folder=Path(args.output) / suite.name if len(suites) > 1 else Path(args.output),
            loaded=loaded,
            suite=suite,
            items=items[suite.name],
            settings=chosen,
            defaults=vtc.model_defaults(loaded.model),
            template=args.prompt,
            positions=args.positions,
            batch_size=args.batch_size,
            limit=args.limit,
        )
        _ask(args, experiment, group)


def _ask(args: argparse.Namespace, experiment: Run, group: Processes) -> None:
    from vtc.eval.common.records import write_manifest

    share = experiment.prepare(group, command(), args.any_code)
    name, folder = experiment.suite.name, experiment.folder
    if group.main and not args.quiet:
        _say(
            f"{name}: {len(experiment.items)} questions x {len(experiment.settings)} settings, "
            f"{len(share.done)} answers are there already"
        )
    if group.count > 1:
        name = f"{name}, process 1 of {group.count}"
    try:
        with progress(disable=args.quiet or not group.main) as bar:
            task = bar.add_task(name, total=share.left)
            share.ask(lambda count: bar.advance(task, count))
        group.wait()
    except KeyboardInterrupt:
        if group.main:
            _say(
                f"stopped; the answers so far are in {folder}, the same command goes on from there"
            )
        raise
    if group.main:
        write_manifest(folder, share.facts)
        _finish(folder, args.strict)


def _finish(folder: Path, strict: bool) -> None:
    """Sum up, print, and turn failed rows into an error where that is asked for."""
    from vtc.eval.accuracy import summary
    from vtc.eval.common.records import read_answers

    found = summary.write(folder)
    print_summary(found)
    print(f"\nrun: {folder}")
    failed = [answer for answer in read_answers(folder) if answer.error is not None]
    if not failed:
        return
    reasons = Counter(answer.error for answer in failed).most_common(3)
    told = "; ".join(f"{count} x {reason}" for reason, count in reasons)
    _say(f"{len(failed)} rows failed and are asked again by the same command: {told}")
    if not any(entry["answered"] for entry in found["settings"]):
        raise VTCError(f"accuracy: nothing could be measured, {len(failed)} rows failed: {told}")
    if strict:
        raise VTCError(f"strict: {len(failed)} rows failed: {told}")


def print_summary(found: dict[str, Any]) -> None:
    """The table on stdout."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from vtc.eval.accuracy.summary import cells

    header, lines = cells(found, figures=False)
    table = Table(title=found["suite"], box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in header:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for line in lines:
        table.add_row(*(escape(cell) for cell in line))
    stdout().print(table)


# -- arguments ---------------------------------------------------------------------------------


def _suites(args: argparse.Namespace) -> list[Suite]:
    from vtc.eval.common.settings import parse_options
    from vtc.eval.suites import create_suite

    options = parse_options(args.suite_option, "suite-option")
    for name in options:
        if name not in args.suite:
            raise VTCError(f"suite-option: got an option of {name!r}, which is not in --suite")
    data = {} if args.data is None else {"data": args.data}
    return [
        create_suite(name, **data, **options.get(name, {})) for name in dict.fromkeys(args.suite)
    ]


def _items(suite: Suite, limit: int | None) -> Sequence[Item]:
    items = suite.first(limit)
    if not items:
        raise VTCError(f"suite: {suite.name!r} has no questions in this data")
    return items


# -- words -------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
