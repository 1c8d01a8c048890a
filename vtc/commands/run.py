"""`vtc run`: ask a model about images, with and without compression."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from vtc.commands.console import print_json, progress, stdout
from vtc.config import CompressionConfig, add_arguments
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
    parser.add_argument(
        "--image", nargs="+", required=True, action="extend", metavar="FILE", help="image files"
    )
    parser.add_argument("--prompt", required=True, help="the question, in the user's words")
    parser.add_argument("--raw", action="store_true", help="the prompt is finished: no template")
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Answer and print."""
    import vtc

    config = CompressionConfig.from_sources(file=args.config, args=args)

    from vtc.rgb import load_image

    pictures = [load_image(path) for path in args.image]
    methods = config.create_all()
    names = [[path] for path in args.image]
    groups = [[picture] for picture in pictures]
    if args.together:
        names, groups = [args.image], [pictures]
    for index in range(len(pictures)):  # a budget for each is checked before the model is loaded
        for method in methods:
            method.for_image(index, len(pictures))
    with progress(disable=args.json) as bar:
        total = len(groups) * (1 + args.compare * (1 + 2 * (args.rounds + 1)))
        task = bar.add_task(f"loading {args.model}", total=total)
        loaded = load(args.model, args.device, args.dtype)
        bar.update(task, description="answering")
        methods = config.create_all(vtc.model_defaults(loaded.model))
        each = [
            [m.for_image(index, len(pictures)) for m in methods] for index in range(len(pictures))
        ]
        plans = [methods] if args.together else each  # budgets are spread over the prompts
        results = [
            _ask(loaded, group, plan, config.positions, args, lambda: bar.advance(task))
            for group, plan in zip(groups, plans, strict=True)
        ]
    for name, result in zip(names, results, strict=True):
        result["images"] = [str(path) for path in name]
    told = [] if args.raw else notes(loaded.processor, args.prompt)
    if args.json:
        data = {
            "model": args.model,
            "prompt": args.prompt,
            "config": config.to_dict(),
            "notes": told,
            "results": [{**r, "report": r["report"].to_dict(details=False)} for r in results],
        }
        for result in data["results"]:
            if result.get("prefill_ratio") is not None:
                result["prefill_ratio"] = dataclasses.asdict(result["prefill_ratio"])
        print_json(data)
    else:
        _print(args, config, results, told)


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
    table.add_column("separators", justify="right")
    if args.compare:
        table.add_column("prefill time", justify="right")
    for result in results:
        report = result["report"]
        after, before = report.total("patches_after"), report.total("patches_before")
        separators = report.total("separators_after"), report.total("separators_before")
        row = [
            escape("\n".join(result["images"])),
            escape(result["answer"]),
            escape(result.get("answer_uncompressed", "")),
            f"{after} / {before} ({after / before:.0%})",
            f"{separators[0]} / {separators[1]}",
            f"x {result['prefill_ratio']}" if args.compare else "",
        ]
        if not args.compare:
            del row[5], row[2]
        table.add_row(*row)
    console = stdout()
    report = results[0]["report"]
    given = {"retention": config.retention, "tokens": config.tokens, **config.options}
    settings = ", ".join(f"{k}={v}" for k, v in given.items() if v is not None)
    console.print(f"[bold]{escape(args.prompt)}[/bold]")
    facts = [args.model, report.method, settings, f"positions {report.positions}"]
    console.print(f"[dim]{escape(' | '.join(fact for fact in facts if fact))}[/dim]")
    console.print(table)
    said = [note for result in results for note in result["report"].notes]
    for note in dict.fromkeys([*told, *said]):
        console.print(f"note: {escape(note)}")
    if args.compare:
        note = (
            "prefill time: median (quartiles) of compressed / uncompressed, "
            f"{args.rounds} interleaved rounds, selection included"
        )
        requests = [each for method in config.create_all() for each in method.requests().values()]
        if any(request.kind == "text_embedding" for request in requests):
            note += "; the question was embedded before"
        console.print(f"[dim]{note}[/dim]")
