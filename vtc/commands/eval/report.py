"""`python -m vtc.eval report RUN... --output FOLDER`: one page from the runs, with PNG and CSV."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vtc.commands.console import waiting
from vtc.errors import VTCError, nearest
from vtc.eval.common.arguments import add_imports, add_suite_option, names, positive

DESCRIPTION = """\
One self-contained HTML page from accuracy runs and at most one efficiency run of the same model:
accuracy against retention and time, a table, question types, differences with confidence intervals,
pictures of kept tokens. PNG figures and CSV tables are written beside it.
"""


def add(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "report",
        help="runs as one page, with figures, tables and statements",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--output", required=True, metavar="FOLDER")
    parser.add_argument("--title", help="heading of the page")
    parser.add_argument(
        "--baseline",
        type=names,
        metavar="METHOD,...",
        help="compared with all others, default random, uniform and resize as far as they are there",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KEY",
        help="put runs together that differ in this: code or packages; repeatable",
    )
    parser.add_argument(
        "--pictures", type=int, default=4, metavar="N", help="questions shown, default 4; 0: none"
    )
    parser.add_argument(
        "--pictures-at", type=float, metavar="SHARE", help="their retention, default 0.25 if there"
    )
    parser.add_argument(
        "--model", metavar="FOLDER", help="for the pictures, when the run names no hub model"
    )
    add_suite_option(
        parser, "for the pictures: how the run's suite was made, such as its data; repeatable"
    )
    add_imports(parser)
    parser.add_argument("--resamples", type=positive, default=10_000, help="default 10000")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Read, compute, write, and say where."""
    from vtc.eval.report.runs import collect

    collected = collect([Path(folder) for folder in args.runs], args.allow)

    from vtc.eval.report import write
    from vtc.eval.report.results import BASELINES, analyse

    with waiting("resampling"):
        results = analyse(
            collected.answers,
            collected.settings,
            collected.facts["suite"]["items"],
            collected.times,
            args.baseline or BASELINES,
            args.resamples,
        )
    for label in args.baseline or ():
        if label not in results.baselines:
            raise VTCError(
                f"baseline: got {label!r}, the runs have {', '.join(results.labels)}"
                f"{nearest(label, results.labels)}"
            )
    with waiting("painting what was kept"):
        subjects, without = _pictures(args, collected, results)
    with waiting("drawing figures"):
        files = write.write(collected, results, Path(args.output), subjects, without, args.title)
    print("\n".join(str(path) for path in files))


def _pictures(args: argparse.Namespace, collected: Any, results: Any) -> tuple[list[Any], str]:
    """Questions with pictures, or why there are none."""
    from vtc.eval.common.settings import parse_options
    from vtc.eval.report import kept

    if args.pictures <= 0:
        return [], "No pictures were asked for."
    name = collected.facts["suite"]["name"]
    options = parse_options(args.suite_option, "suite-option")
    retention = args.pictures_at
    if retention is None:
        shares = [share for share in results.retentions if share is not None]
        retention = min(shares, key=lambda share: abs(share - 0.25), default=None)
    elif retention not in results.retentions:
        raise VTCError(
            f"pictures-at: got {retention:g}, measured are "
            f"{', '.join(f'{share:g}' for share in results.retentions if share is not None)}"
        )
    chosen = kept.choose(results, retention, args.pictures)
    if not chosen:
        return [], "There is no question on which the methods disagree."
    try:
        found = kept.remake(
            collected, results, chosen, retention, args.model, options.get(name, {})
        )
    except VTCError as error:
        return [], f"Left out, because the pictures cannot be made again: {error}"
    return found, ""
