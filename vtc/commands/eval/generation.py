"""`generation`: train, sample, measure and compare discrete image tokenizers and generators."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Train a tokenizer, train a generator on it, sample and measure, by a config file:

  python -m vtc.eval generation run digits_ar --output out/digits
  python -m vtc.eval generation train-tokenizer digits_ar --output out/digits --resume
  accelerate launch -m vtc.eval generation train-tokenizer digits_ar --output out/digits

or repeat the committed comparisons (docs/generation.md):

  python -m vtc.eval generation study quantizers
  python -m vtc.eval generation page
"""
RESULTS = Path("docs/results/generation")


def add(commands: Any) -> None:
    """Add the sub-command and its own."""
    parser = commands.add_parser(
        "generation",
        help="train, sample and compare discrete image tokenizers and generators",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, text in (
        ("train-tokenizer", run_train_tokenizer, "train the tokenizer of a config"),
        ("train-generator", run_train_generator, "train the generator on the frozen tokenizer"),
        ("sample", run_sample, "draw images from the generator"),
        ("measure", run_measure, "measure reconstructions and samples"),
        ("run", run_all, "all four, one after the other"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        _add_experiment(action, training=name.startswith("train") or name == "run")
        action.set_defaults(run=run)
    study = actions.add_parser("study", help="run a committed comparison, or what is missing of it")
    study.add_argument("name", help="a study of `list`, or 'all'")
    study.add_argument("--output", type=Path, default=RESULTS, help=f"default {RESULTS}")
    study.add_argument(
        "--seeds", type=_positive, help="seeds a setting, by default the study's own"
    )
    study.add_argument("--threads", type=_positive, default=1, help="of the CPU, default 1")
    study.set_defaults(run=run_study)
    page = actions.add_parser("page", help="write the picture page of the studies")
    page.add_argument("--output", type=Path, default=RESULTS, help=f"default {RESULTS}")
    page.add_argument("--markdown", type=Path, help="put the tables into this file as well")
    page.set_defaults(run=run_page)
    listing = actions.add_parser("list", help="configs, tokenizers, generators and studies")
    listing.set_defaults(run=run_list)


def _add_experiment(parser: argparse.ArgumentParser, training: bool) -> None:
    parser.add_argument("config", help="a YAML file, or a config of `list`")
    parser.add_argument("--output", type=Path, required=True, help="folder of all files")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="overrides, for example tokenizer.train.steps=100",
    )
    if training:
        parser.add_argument("--resume", action="store_true", help="continue from a checkpoint")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, allowed are whole numbers >= 1")
    return number


def _experiment(args: argparse.Namespace) -> Any:
    from vtc.eval.generation.config import load_experiment

    return load_experiment(args.config, args.set)


def _with_bar(call: Callable[[Any], Any], steps: int, text: str) -> Any:
    from accelerate import PartialState

    from vtc.commands.console import progress

    with progress(disable=not PartialState().is_main_process) as bar:
        task = bar.add_task(text, total=steps)

        def show(step: int, row: dict[str, float]) -> None:
            loss = f", loss {row['loss']:.3f}" if row else ""
            bar.update(task, completed=step, description=text + loss)

        return call(show)


def run_train_tokenizer(args: argparse.Namespace) -> None:
    """`train-tokenizer`."""
    experiment = _experiment(args)

    from vtc.eval.generation import experiments

    _with_bar(
        lambda show: experiments.train_tokenizer(experiment, args.output, args.resume, show),
        experiment.tokenizer.train.steps,
        f"tokenizer {experiment.tokenizer.name}",
    )


def run_train_generator(args: argparse.Namespace) -> None:
    """`train-generator`."""
    experiment = _experiment(args)

    from vtc.eval.generation import experiments

    _with_bar(
        lambda show: experiments.train_generator(experiment, args.output, args.resume, show),
        experiment.generator.train.steps,
        f"generator {experiment.generator.name}",
    )


def run_sample(args: argparse.Namespace) -> None:
    """`sample`."""
    experiment = _experiment(args)

    from vtc.commands.console import stdout, waiting
    from vtc.eval.generation import experiments

    with waiting(f"sampling {experiment.generator.name}"):
        images, _ = experiments.sample(experiment, args.output)
    stdout().print(f"{len(images)} samples, {args.output / 'samples.png'}", soft_wrap=True)


def run_measure(args: argparse.Namespace) -> None:
    """`measure`."""
    experiment = _experiment(args)

    from vtc.commands.console import print_json, waiting
    from vtc.eval.generation import experiments

    with waiting("measuring"):
        found = experiments.measure(experiment, args.output)
    print_json(found)


def run_all(args: argparse.Namespace) -> None:
    """`run`."""
    experiment = _experiment(args)

    from vtc.eval.generation import experiments

    experiments.one_process("run")
    experiments.check(experiment)
    if experiment.generator.target != "pixels":
        run_train_tokenizer(args)
    run_train_generator(args)
    run_sample(args)
    run_measure(args)


def run_study(args: argparse.Namespace) -> None:
    """`study`."""
    from vtc.eval.generation.studies import NAMES, load_study

    studies = {name: load_study(name) for name in (NAMES if args.name == "all" else [args.name])}

    import torch

    from vtc.commands.console import progress, stdout
    from vtc.eval.generation.studies import base

    torch.set_num_threads(args.threads)
    for name, study in studies.items():
        seeds = args.seeds or study.seeds
        with progress() as bar:
            task = bar.add_task(name, total=len(study.cases) * seeds)
            show = functools.partial(bar.update, task, advance=1)

            def say(text: str, show: Any = show) -> None:
                show(description=text)

            rows = base.execute(study, args.output, range(seeds), say)
        _print_study(base.summarise(study, rows, args.output), stdout())


def _print_study(summary: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    from vtc.eval.generation.studies import base

    table = Table(title=summary["title"], header_style="bold")
    table.add_column("")
    for metric in summary["metrics"]:
        table.add_column(metric["label"], justify="right")
    for entry in summary["table"]:
        cells = []
        for metric in summary["metrics"]:
            found, digits = entry.get(metric["key"]), metric["digits"]
            cells.append(base.cell(found, digits) if found else "")
        table.add_row(entry["case"], *cells)
    console.print(table)
    for line in summary["reading"]:
        console.print(line, markup=False)


def run_page(args: argparse.Namespace) -> None:
    """`page`."""
    from vtc.commands.console import stdout
    from vtc.eval.generation.page import write_page, write_tables

    stdout().print(str(write_page(args.output)), soft_wrap=True)
    if args.markdown:
        write_tables(args.output, args.markdown)


def run_list(args: argparse.Namespace) -> None:
    """`list`."""
    from vtc.commands.console import stdout
    from vtc.discrete import list_generators, list_tokenizers
    from vtc.eval.generation.config import list_configs
    from vtc.eval.generation.studies import NAMES

    for title, names in (
        ("configs", list_configs()),
        ("studies", NAMES),
        ("tokenizers", list_tokenizers()),
        ("generators", list_generators()),
    ):
        stdout().print(f"[bold]{title}[/bold]  {'  '.join(names)}")
