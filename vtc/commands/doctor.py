"""`vtc doctor`: whether compression is right here, by numbers and not by versions."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from vtc.commands.console import print_json, progress, stdout
from vtc.config import CompressionConfig, add_arguments
from vtc.errors import VTCError
from vtc.eval.common.arguments import add_imports, add_place
from vtc.eval.common.loading import Loaded, find_device, load
from vtc.eval.common.prompts import user_prompt

if TYPE_CHECKING:
    from PIL import Image

    from vtc.methods.base import Method
    from vtc.plugins.hf.checks.outcome import Outcome
    from vtc.plugins.hf.checks.subject import Subject

DESCRIPTION = """\
Check this installation, or with --model a model of your own, by numbers: retention 1.0 changes no bit;
decoding with a cache under compression gives what one pass over the whole text gives; a batch gives
what its rows give alone; removal leaves nothing; attention backends agree; kernels give what their
PyTorch twins give. Without --model: tiny random models of several families, and the reference model.
The exit status is 1 where a check failed.
"""

#: minor versions of what the whole test suite runs with; transformers has a range, see `plugins/hf`
TESTED = {"torch": "2.13", "triton": "3.7"}


def add(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "doctor",
        help="check this installation, or a model of your own, by numbers",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="check this model: hub id, folder, 'reference' or 'photo'")
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON with compression settings")
    add_imports(parser)
    add_place(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_arguments(parser, prefix="")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Check and print.

    Raises:
        VTCError: a check failed; or wrong settings, before anything is checked.
    """
    setting = CompressionConfig.from_sources(file=args.config, args=args)
    if setting.method == "none":
        setting.method = "uniform"
        if setting.tokens is None and setting.retention is None:
            setting.retention = 0.5
    method = setting.create()
    if isinstance(setting.retention, (list, dict)) or isinstance(setting.tokens, list):
        raise VTCError("retention: the prompts of the checks differ in images, give one number")
    find_device(args.device)
    found: list[Outcome] = []
    began = time.monotonic()
    with progress(disable=args.json) as bar:
        task = bar.add_task("checking", total=None)
        with _quiet():
            for outcome in _all(args, method, setting.positions):
                found.append(outcome)
                checked = f"checked {outcome.check}, {outcome.subject}"
                bar.update(task, advance=1, description=checked)
        bar.update(task, total=len(found))
    failed = [outcome for outcome in found if outcome.status == "failed"]
    if args.json:
        print_json(
            {
                "model": args.model,
                "config": setting.to_dict(),
                "failed": len(failed),
                "checks": [vars(outcome) for outcome in found],
            }
        )
    else:
        _print(found, setting, time.monotonic() - began)
    if failed:
        names = ", ".join(dict.fromkeys(one.check for one in failed))
        raise VTCError(f"doctor: {len(failed)} of {len(found)} checks failed: {names}")


def _all(args: argparse.Namespace, method: Method, positions: str) -> Iterator[Outcome]:
    try:
        from vtc.plugins.hf import tiny
    except ImportError as error:
        raise VTCError(f"transformers: vtc does not go with what is installed: {error}") from error

    policy = None if positions == "original" else positions  # some families have one of their own
    yield from _versions()
    yield from _kernels(args.device)
    if args.model is not None:
        yield from _loaded(args.model, args, method, policy)
        return
    for family in tiny.FAMILIES:
        yield from _tiny(family, args, method, policy)
    yield from _loaded("reference", args, method, policy)


# -- the installation ------------------------------------------------------------------------------


def _versions() -> Iterator[Outcome]:
    """What is installed. An untested version fails nothing: the other checks decide."""
    import importlib.metadata
    import platform

    from vtc.plugins.hf.checks.outcome import Outcome

    yield Outcome("version", "python", "ok", platform.python_version())
    for package in ("torch", "transformers", "triton"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield Outcome("version", package, "not run", "not installed")
            continue
        yield Outcome("version", package, "ok", f"{version} ({_tested(package, version)})")


def _tested(package: str, version: str) -> str:
    from vtc.plugins.hf import TESTED as RANGE
    from vtc.plugins.hf import version_note

    if package == "transformers":
        known, text = version_note(version) is None, " to ".join(RANGE)
    else:
        known, text = version.startswith(f"{TESTED[package]}."), TESTED[package]
    return f"tested: {text}" if known else f"not tested, tested: {text}; the checks below decide"


def _kernels(place: str | None) -> Iterator[Outcome]:
    """Every operation as it runs on the device, against its twin in float64."""
    import torch

    from vtc.eval.kernels.bench.operations import OPERATIONS, correctness, is_right
    from vtc.eval.kernels.bench.sizes import SMALL
    from vtc.kernels._dispatch import use_triton
    from vtc.plugins.hf.checks.outcome import Differs, Found, NotRun, Outcome, outcome

    device = find_device(place)

    def compare(name: str) -> Found:
        row = correctness(name, SMALL, device, torch.float32)
        text = f"error {row['error']:.1e}, {row['agree']:.0%} of the whole numbers agree"
        if not is_right(row):
            raise Differs(f"not what the twin gives in float64: {text}")
        return Found(text)

    def which() -> Found:
        if not use_triton(torch.zeros(1, device=device)):
            reason = f"the PyTorch twins run on {device}"
            raise NotRun(reason if device.type == "cpu" else f"{reason}: see docs/kernels.md")
        return Found(f"kernels run on {device}, {torch.cuda.get_device_name(device)}")

    chosen = outcome("kernels", "triton", which)
    yield chosen
    kind = "twins" if chosen.status == "not run" else "kernels"
    single = [outcome(kind, name, partial(compare, name)) for name in OPERATIONS]
    if all(one.status == "ok" for one in single):
        seconds = sum(one.seconds for one in single)
        text = f"{len(single)} operations give what their twins give in float64"
        yield Outcome(kind, "all operations", "ok", text, seconds=seconds)
    else:
        yield from single


# -- models ----------------------------------------------------------------------------------------


def _checked(subject: Subject, own: bool) -> Iterator[Outcome]:
    """All checks of a model.

    Args:
        own: whether it is the user's, for whom a setting that cannot be put on it is a failure.
    """
    from vtc.plugins.hf.checks.agreement import CHECKS
    from vtc.plugins.hf.checks.attention import attention
    from vtc.plugins.hf.checks.outcome import Outcome, outcome
    from vtc.plugins.hf.checks.subject import refused

    reason = refused(subject)
    if reason is not None:
        yield Outcome("setting", subject.name, "failed" if own else "not run", reason)
        return
    for name, check in CHECKS.items():
        yield outcome(name, subject.name, partial(check, subject))
    yield from attention(subject)


def _tiny(
    family: str, args: argparse.Namespace, method: Method, positions: str | None
) -> Iterator[Outcome]:
    """A tiny random model."""
    import torch

    from vtc.plugins.hf import tiny
    from vtc.plugins.hf.checks.outcome import Found, outcome
    from vtc.plugins.hf.checks.subject import tiny_subject

    made: list[Subject] = []

    def make() -> Found:
        dtype = torch.float32 if args.dtype == "auto" else getattr(torch, args.dtype)
        subject = tiny_subject(f"tiny {family}", tiny.build(family), method, positions)
        subject.model.to(find_device(args.device), dtype)
        subject.rows = [_place(row, subject.model) for row in subject.rows]
        subject.batch = _place(subject.batch, subject.model)
        made.append(subject)
        return Found("")

    done: Outcome = outcome("making a model", f"tiny {family}", make)
    if made:
        yield from _checked(made[0], own=False)
    else:
        yield done


def _place(batch: Any, model: Any) -> Any:
    """Tensors on the model's device, pixels in its dtype."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in batch.items()
    }


def _loaded(
    name: str, args: argparse.Namespace, method: Method, positions: str | None
) -> Iterator[Outcome]:
    """A model with its processor, loaded as `vtc run` does."""
    from vtc.plugins.hf.checks.outcome import Found, NotRun, outcome

    made: list[Subject] = []

    def make() -> Found:
        try:
            loaded = load(name, args.device, args.dtype)
        except VTCError as error:
            if args.model is None:  # the reference model does not ship with every build
                raise NotRun(str(error)) from error
            raise
        made.append(_subject(loaded, method, positions))
        return Found(f"{type(loaded.model).__name__}, {loaded.model.dtype}, {loaded.device}")

    yield outcome("loading", name, make)
    for subject in made:
        yield from _checked(subject, own=args.model is not None)


def _subject(loaded: Loaded, method: Method, positions: str | None) -> Subject:
    """The model with two short prompts about pictures of different sizes."""
    from vtc.plugins.hf.checks.outcome import first_line
    from vtc.plugins.hf.checks.subject import Subject

    images = [_picture(112, 168), _picture(196, 112)]
    words = ("what is in the picture?", "how many circles?")
    texts = [user_prompt(loaded.processor, text, 1) for text in words]
    rows = [dict(loaded.inputs([i], word)) for i, word in zip(images, words, strict=True)]
    batch: dict[str, Any] | str
    try:
        batch = dict(loaded.batch([[i] for i in images], texts))
    except Exception as error:  # whatever a processor says to a batch
        batch = f"the processor makes no batch: {type(error).__name__}: {first_line(error)}"
    return Subject(loaded.name, loaded.model, rows, batch, method, positions, loaded.processor)


def _picture(height: int, width: int) -> Image.Image:
    """Shapes on a ground that shades off, so that no two patches are the same."""
    import numpy as np
    from PIL import Image, ImageDraw

    y, x = np.mgrid[0:height, 0:width]
    shade = np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) % 256], -1)
    picture = Image.fromarray(shade.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    side = min(height, width) // 3
    draw.ellipse((side // 2, side // 2, 2 * side, 2 * side), fill=(230, 40, 40))
    draw.rectangle(
        (width - 2 * side, height - side, width - side // 2, height - 5), fill=(20, 20, 90)
    )
    return picture


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of libraries between the lines: what they warn of is what the checks look at."""
    import transformers

    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# -- the table -------------------------------------------------------------------------------------


def _print(found: list[Outcome], setting: CompressionConfig, seconds: float) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("of", overflow="fold")
    table.add_column("result", no_wrap=True)
    table.add_column("numbers or reason", overflow="fold")
    styles = {"ok": "green", "failed": "bold red", "not run": "dim"}
    for one in _together(found):
        result = "FAILED" if one.status == "failed" else one.status
        style = styles[one.status]
        table.add_row(
            escape(one.check),
            escape(one.subject),
            f"[{style}]{result}[/{style}]",
            escape(one.detail),
        )
    console = stdout()
    budget = setting.retention if setting.tokens is None else f"{setting.tokens} tokens"
    named = setting.method if budget is None else f"{setting.method} {budget}"
    models = ", ".join(_models(found))
    console.print(f"[bold]{escape(named)}[/bold]{escape(f' on {models}' if models else '')}")
    console.print(table)
    counts = [
        f"{sum(one.status == status for one in found)} {status}"
        for status in ("ok", "failed", "not run")
    ]
    console.print(f"[dim]{', '.join(counts)}, {seconds:.0f} s[/dim]")


def _models(found: list[Outcome]) -> list[str]:
    """Names of the models that the checks looked at."""
    return list(dict.fromkeys(one.subject for one in found if one.check == "removal"))


def _together(found: list[Outcome]) -> list[Outcome]:
    """One line for what a check says of several models: those that pass, and those it was not run on
    for the same reason. Failures stay apart."""
    from vtc.plugins.hf.checks.outcome import Outcome

    lines: dict[Any, list[Outcome]] = {}
    for index, one in enumerate(found):
        key: Any = (one.check, one.status)
        if one.status == "failed" or one.check == "version":
            key = index
        elif one.status == "not run":
            key = (*key, one.detail)
        lines.setdefault(key, []).append(one)
    order, models, out = list(dict.fromkeys(one.check for one in found)), _models(found), []
    for some in sorted(lines.values(), key=lambda some: order.index(some[0].check)):
        first = some[0]
        furthest = max(some, key=lambda one: one.apart or 0.0)
        subjects = [one.subject for one in some]
        every = subjects == models and len(models) > 1
        named = f"all {len(models)} models" if every else ", ".join(subjects)
        out.append(Outcome(first.check, named, first.status, furthest.detail))
    return out
