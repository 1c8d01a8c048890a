"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vtc.config import POSITIONS
from vtc.eval.common.loading import DTYPES

if TYPE_CHECKING:
    from vtc.eval.common.settings import Setting


def add_model(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--config`, `--import`, `--device`, `--dtype`."""
    parser.add_argument(
        "--model",
        default="reference",
        help="hub id, folder, 'reference' (default) or 'photo'",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON with compression settings")
    add_imports(parser)
    add_place(parser)


def add_imports(parser: argparse.ArgumentParser) -> None:
    """`--import`; `run_command` does it."""
    parser.add_argument(
        "--import",
        dest="imports",
        type=names,
        action="extend",
        default=[],
        metavar="MODULE,...",
        help="modules or files (my_method.py) that register methods or suites; see also VTC_IMPORT",
    )


def add_place(parser: argparse.ArgumentParser) -> None:
    """`--device`, `--dtype`."""
    parser.add_argument("--device", help="torch device, default: a GPU if there is one")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")


def positive(text: str) -> int:
    """Type of an argument that counts something."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed are whole numbers >= 1")
    return value


def names(text: str) -> list[str]:
    """Type of an argument that lists names, with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def add_settings(parser: argparse.ArgumentParser, retention: str | None = None) -> None:
    """What is measured, and on what: `--methods`, `--retention`, `--method-options`,
    `--positions`, `--import`, `--device`, `--dtype`.

    Args:
        retention: the default, and all methods are that of `--methods`; without one both must be given.
    """
    parser.add_argument(
        "--methods",
        required=retention is None,
        type=names,
        metavar="NAME,...",
        help=None if retention is None else "default: all",
    )
    parser.add_argument(
        "--retention",
        required=retention is None,
        default=retention,
        type=names,
        metavar="SHARE,...",
        help="shares of patch tokens to keep; 'own' is the count of a method that has one"
        + ("" if retention is None else f"; default {retention}"),
    )
    parser.add_argument(
        "--method-options",
        action="append",
        default=[],
        metavar="NAME.FIELD=VALUE",
        help="option of a method, repeatable, or JSON: {NAME: {FIELD: VALUE}}",
    )
    parser.add_argument("--positions", choices=POSITIONS, default="original")
    add_imports(parser)
    add_place(parser)


def planned(args: argparse.Namespace, seeds: int = 1, pixels: Sequence[str] = ()) -> list[Setting]:
    """The settings that the arguments of `add_settings` ask for."""
    from vtc.eval.common import settings
    from vtc.registry import compared_methods

    return settings.plan(
        compared_methods(every=False) if args.methods is None else args.methods,
        [settings.parse_retention(text) for text in args.retention],
        seeds,
        settings.parse_options(args.method_options, "method-options", settings.method_option),
        [settings.parse_pixels(text) for text in pixels],
    )


def add_suite_option(parser: argparse.ArgumentParser, text: str) -> None:
    """`--suite-option`; `text` is its help."""
    parser.add_argument(
        "--suite-option", action="append", default=[], metavar="NAME.FIELD=VALUE", help=text
    )


def command() -> str:
    """The command line, as a run's manifest has it."""
    return shlex.join(["python", "-m", "vtc.eval", *sys.argv[1:]])
