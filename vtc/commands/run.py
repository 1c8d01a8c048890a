"""`vtc run`: ask a model about images, with and without compression."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from vtc.commands import asked
from vtc.commands.console import print_json, progress, said, stdout
from vtc.config import CompressionConfig, add_arguments
from vtc.errors import VTCError
from vtc.eval.common.arguments import add_model, positive
from vtc.eval.common.loading import Loaded, load
from vtc.eval.common.prompts import RULES, notes

if TYPE_CHECKING:
    from PIL import Image

    from vtc.methods.base import Method

DESCRIPTION = (
    """\
Ask a model about images. Every image gets its own prompt and its own row; --together puts all of
them into one prompt. --compare also answers without compression and measures prefill times
(vision tower, selection and language model up to the first token) side by side, interleaved.
Settings: --config file < VTC_* environment variables < flags.

"""
    + RULES
)


def add(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "run",
        help="ask a model about images, with and without compression",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(parser)
    asked.add(parser, several=True)
    parser.add_argument(
        "--prompt", help="the question, in the user's words; of a scene by default its own"
    )
    parser.add_argument("--together", action="store_true", help="all images in one prompt")
    parser.add_argument(
        "--compare", action="store_true", help="also without compression, with prefill times"
    )
    parser.add_argument("--rounds", type=positive, default=5, help="timed rounds, default 5")
    parser.add_argument(
        "--max-new-tokens", type=positive, metavar="N", help="default: the model's own, or 64"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_arguments(parser, prefix="")
    parser.set_defaults(run=run, usage=parser.error)


def run(args: argparse.Namespace) -> None:
    """Answer and print."""
    import vtc

    if args.prompt is None and args.scene is None:
        args.usage("the following arguments are required: --prompt")
    config = CompressionConfig.from_sources(file=args.config, args=args)
    subjects = asked.subjects(args, args.prompt)
    args.prompt = subjects[0].prompt
    methods = config.create_all()
    groups = [subjects] if args.together else [[subject] for subject in subjects]
    if args.together:
        for subject in subjects:
            subject.image()  # all of them, or none
    for index in range(len(subjects)):  # a budget for each is checked before the model is loaded
        for method in methods:
            method.for_image(index, len(subjects))
    with progress(disable=args.json) as bar:
        total = len(groups) * (1 + args.compare * (1 + 2 * (args.rounds + 1)))
        task = bar.add_task(f"loading {args.model}", total=total)
        loaded = load(args.model, args.device, args.dtype)
        bar.update(task, description="answering")
        methods = config.create_all(vtc.model_defaults(loaded.model))
        each = [
            [m.for_image(index, len(subjects)) for m in methods] for index in range(len(subjects))
        ]
        plans = [methods] if args.together else each  # budgets are spread over the prompts
        results = []
        for group, plan in zip(groups, plans, strict=True):
            if group[0].error is not None:
                unread: dict[str, Any] = {"answer": None, "error": group[0].error}
                results.append(unread)
                continue
            pictures = [subject.image() for subject in group]
            results.append(
                _ask(loaded, pictures, plan, config.positions, args, lambda: bar.advance(task))
            )
    for group, result in zip(groups, results, strict=True):
        result["images"] = [subject.name for subject in group]
        if group[0].right is not None:
            result["right_answer"] = group[0].right
    told = [] if args.raw else notes(loaded.processor, args.prompt)
    told += [*asked.budgeted(config), *asked.about(args)]
    if args.json:
        data = {
            "model": args.model,
            "prompt": args.prompt,
            "config": config.to_dict(),
            "notes": told,
            "results": [_plain(result) for result in results],
        }
        print_json(data)
    else:
        _print(args, config, results, told)
    failed = [result for result in results if "error" in result]
    if failed:
        raise VTCError(f"run: {len(failed)} of {len(results)} images could not be read")


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON has it."""
    out = dict(result)
    if "report" in out:
        out["report"] = out["report"].to_dict(details=False)
    if "prefill_ratio" in out:
        out["prefill_ratio"] = dataclasses.asdict(out["prefill_ratio"])
    return out


def _ask(
    loaded: Loaded,
    images: list[Image.Image],
    methods: list[Method],
    positions: str,
    args: argparse.Namespace,
    step: Any,
) -> dict[str, Any]:
    import torch

    import vtc
    from vtc.eval.common.timing import interleaved, ratio, stopwatch

    inputs = loaded.inputs(images, args.prompt, args.raw)

    def generate(count: int) -> Any:
        with torch.inference_mode():
            return loaded.model.generate(**inputs, max_new_tokens=count, do_sample=False)

    held: list[Any] = []  # a text encoder that must not be loaded anew in every round

    def compressed(count: int, timed: bool = False) -> Any:
        with vtc.compress(
            loaded.model, methods, processor=loaded.processor, positions=positions
        ) as handle:
            held[:] = [handle.text_encoder]
            if timed:
                return stopwatch(lambda: generate(count), loaded.device)
            return generate(count), handle.reports[-1]

    own = getattr(loaded.model.generation_config, "max_new_tokens", None)
    longest = args.max_new_tokens or own or 64
    out, report = compressed(longest)
    step()
    result = {"answer": loaded.decode(out, inputs)[0].strip(), "report": report}
    if args.compare:
        result["answer_uncompressed"] = loaded.decode(generate(longest), inputs)[0].strip()
        step()
        times = interleaved(
            {
                "without": lambda: stopwatch(lambda: generate(1), loaded.device),
                "with": lambda: compressed(1, timed=True),
            },
            args.rounds,
            step,
        )
        result["prefill_ratio"] = ratio(times["with"], times["without"])
        result["prefill_seconds"] = times
    return result


def _print(
    args: argparse.Namespace,
    config: CompressionConfig,
    results: list[dict[str, Any]],
    told: list[str],
) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("answer", overflow="fold")
    if args.compare:
        table.add_column("without compression", overflow="fold")
    table.add_column("patch tokens", justify="right")
    table.add_column("newline tokens", justify="right")
    if args.compare:
        table.add_column("prefill time", justify="right")
    for result in results:
        names = escape("\n".join(result["images"]))
        if "error" in result:
            table.add_row(names, f"[red]not read: {escape(result['error'])}[/red]")
            continue
        report = result["report"]
        after, before = report.total("patches_after"), report.total("patches_before")
        separators = report.total("separators_after"), report.total("separators_before")
        row = [
            names,
            escape(said(result["answer"])),
            escape(said(result.get("answer_uncompressed", ""))),
            f"{after} / {before} ({after / max(before, 1):.0%})",
            f"{separators[0]} / {separators[1]}",
            f"x {result['prefill_ratio']}" if args.compare else "",
        ]
        if not args.compare:
            del row[5], row[2]
        table.add_row(*row)
    console = stdout()
    reports = [result["report"] for result in results if "report" in result]
    report = reports[0]
    given = {"retention": config.retention, "tokens": config.tokens, **config.options}
    settings = ", ".join(f"{k}={v}" for k, v in given.items() if v is not None)
    console.print(f"[bold]{escape(args.prompt)}[/bold]")
    facts = [args.model, report.method, settings, f"positions {report.positions}"]
    console.print(f"[dim]{escape(' | '.join(fact for fact in facts if fact))}[/dim]")
    console.print(table)
    for result in results:
        if "right_answer" in result:
            console.print(f"the right answer: {escape(result['right_answer'])}")
    for note in dict.fromkeys([*told, *(note for report in reports for note in report.notes)]):
        console.print(f"note: {escape(note)}")
    if args.compare:
        note = (
            "prefill time: median (quartiles) of compressed / uncompressed, "
            f"{args.rounds} interleaved rounds, selection included"
        )
        requests = [each for method in config.create_all() for each in method.requests().values()]
        if any(request.kind == "text_embedding" for request in requests):
            note += "; the question was embedded before"
        if args.model == "reference":
            note += "; on a model this small choosing may cost more than it saves"
        console.print(f"[dim]{note}[/dim]")
