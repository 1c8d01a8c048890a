"""`vtc tune`: the cheapest setting that keeps a target on one's own questions."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.commands.console import print_json, progress, stdout
from vtc.errors import VTCError
from vtc.eval.common import settings
from vtc.eval.common.arguments import add_imports, add_place, add_suite_option, names, positive
from vtc.eval.common.loading import load
from vtc.registry import check_method
from vtc.several import names_of

if TYPE_CHECKING:
    from vtc.eval.suites.base import Suite
    from vtc.eval.tune.result import Tuned

DESCRIPTION = """\
Find the cheapest setting (method, budget, resolution, positions) that keeps a share of the model's
quality on your own questions, and prove it on questions that the search never saw.

A line of the file is {"image": "page.png", "question": "...", "answer": "..."}. Without answers the
model's own, uncompressed, are what counts. Questions about one image count together: a target of
0.99 takes 625 images at least, 0.95 123, 0.9 63; fewer are refused with the number.

The configuration is written to --output, which `vtc run --config` and
`CompressionConfig.from_sources(file=...)` read. A folder beside it keeps the run: its page
(tune.html), its numbers, and all answers, so that the same command goes on where it was stopped.
Where no setting is proved the file leaves the model as it is, and best.yaml in the folder has the
best setting.
"""


def add(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "tune",
        help="the cheapest setting that keeps, say, 99 %% on your own questions, with a proof",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", default="reference", help="hub id, folder, 'reference' (default) or 'photo'"
    )
    parser.add_argument("--data", metavar="FILE", help="questions, JSONL; of a suite its data")
    parser.add_argument("--suite", metavar="NAME", help="questions of a benchmark instead")
    add_suite_option(parser, "field of the suite, such as reference.scenes=150")
    parser.add_argument("--limit", type=positive, metavar="N", help="first N questions alone")
    parser.add_argument(
        "--target", type=float, default=0.99, metavar="SHARE",
        help="share of the full model's quality to keep, in (0, 1); default 0.99",
    )  # fmt: skip
    parser.add_argument(
        "--quality", choices=("answers", "agreement", "divergence"),
        help="the metric relative to the full model's; agreement with its own answers; 1 less the "
        "divergence of distributions. Default: answers where there are some, else agreement",
    )  # fmt: skip
    parser.add_argument(
        "--cost", choices=("time", "tokens", "memory"), default="time",
        help="what is to be small: time to the first token (default), visual tokens, peak memory",
    )  # fmt: skip
    parser.add_argument(
        "--metric", choices=("exact", "contains", "anls", "relaxed", "vqa"), default="exact",
        help="of answers to own questions, default exact",
    )  # fmt: skip
    parser.add_argument(
        "--max-new-tokens", type=positive, default=32, metavar="N",
        help="how long an answer to own questions may get, default 32",
    )  # fmt: skip
    parser.add_argument(
        "--methods", type=names, metavar="NAME,...",
        help="methods and compositions such as resize+divprune; default: one of each kind",
    )  # fmt: skip
    parser.add_argument(
        "--retention", type=names, metavar="SHARE,...", help="budgets, default 0.75 to 0.05"
    )
    parser.add_argument(
        "--tokens", type=names, metavar="COUNT,...", help="absolute budgets instead"
    )
    parser.add_argument(
        "--positions", type=names, default=["original"], metavar="RULE,...",
        help="rules for position ids, default original",
    )  # fmt: skip
    parser.add_argument(
        "--method-options", action="append", default=[], metavar="NAME.FIELD=VALUE",
        help="option of a method, repeatable, or JSON: {NAME: {FIELD: VALUE}}",
    )  # fmt: skip
    parser.add_argument(
        "--by-question", action="store_true",
        help="fit shares by how questions begin too: a count may need more tokens than a word",
    )  # fmt: skip
    parser.add_argument("--output", default="vtc.yaml", metavar="FILE", help="default vtc.yaml")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the split of the images, default 0")
    add_imports(parser)
    add_place(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, usage=parser.error)


def run(args: argparse.Namespace) -> None:
    """Search, confirm, write, print."""
    from vtc.eval.tune import space
    from vtc.eval.tune.place import check_output, folder_of
    from vtc.eval.tune.promise import check_target

    if args.data is None and args.suite is None:
        args.usage("one of the arguments --data --suite is required")
    output = Path(args.output)
    check_output(output)
    check_target(args.target)
    for name in args.methods or ():
        for part in names_of(name):
            check_method(part)
    suite = _suite(args)
    suite.items()  # what is wrong with the file is said before torch is imported
    candidates = space.plan(
        args.methods,
        _numbers("retention", args.retention, float),
        _numbers("tokens", args.tokens, int) or (),
        args.positions,
        settings.parse_options(args.method_options, "method-options", settings.method_option),
    )
    from vtc.eval.tune.questions import ByImage
    from vtc.eval.tune.run import Tuning, check_enough, quality_of, vtc_defaults

    questions = ByImage.of(suite, args.limit)
    quality = quality_of(args.quality, questions)
    check_enough(questions, args.target, args.seed)
    with progress(disable=args.json) as bar:
        task = bar.add_task(f"loading {args.model}")
        loaded = load(args.model, args.device, args.dtype)
        bar.update(task, description="asking")
        result = Tuning(
            loaded, suite, args.target, candidates, quality, args.cost, folder_of(output),
            vtc_defaults(loaded.model), args.limit, args.batch_size, args.seed,
            args.by_question, shlex.join(["vtc", *sys.argv[1:]]),
            told=(lambda line: None) if args.json else bar.print,
            advance=lambda count: bar.advance(task, count),
            expected=lambda count: bar.update(task, total=count),
        ).run()  # fmt: skip
    files = result.write(output)
    if args.json:
        print_json({**result.to_dict(), "files": [str(file) for file in files]})
        return
    _print(result, files)


def _suite(args: argparse.Namespace) -> Suite:
    if args.suite is None:
        from vtc.eval.tune.questions import Questions

        return Questions(args.data, args.metric, args.max_new_tokens)
    from vtc.eval.suites import create_suite

    options = settings.parse_options(args.suite_option, "suite-option").get(args.suite, {})
    if args.data is not None:
        options["data"] = args.data
    return create_suite(args.suite, **options)


def _numbers(name: str, texts: list[str] | None, kind: type) -> list[Any] | None:
    if texts is None:
        return None
    found = []
    for text in texts:
        try:
            found.append(kind(text))
        except ValueError:
            raise VTCError(f"{name}: got {text!r}, expected a number") from None
    return found


def _print(result: Tuned, files: list[Path]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from vtc.eval.tune.promise import percent_down

    console = stdout()
    table = Table(header_style="bold")
    table.add_column("setting", overflow="fold")
    for name in ("quality", "at least", result.cost_of, "images"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what became of it", overflow="fold")
    for standing in result.standings:
        mark = "bold" if standing is result.promised else ""
        confirmed = f" + {len(standing.confirmed)}" if standing.confirmed is not None else ""
        table.add_row(
            escape(standing.candidate.label),
            "" if math.isnan(standing.quality) else f"{standing.quality:.1%}",
            "" if standing.low is None else f"{percent_down(standing.low)}%",
            "" if math.isnan(standing.cost) else f"{standing.cost:.2f}",
            f"{standing.images}{confirmed}",
            "promised" if mark else escape(standing.lost),
            style=mark,
        )
    console.print(table)
    for line in [*result.sentences(), *result.cautions]:
        console.print(line, markup=False, highlight=False)
    console.print(f"written: {', '.join(map(str, files))}", markup=False, highlight=False)
