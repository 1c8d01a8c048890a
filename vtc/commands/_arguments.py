"""Arguments that several commands share."""

from __future__ import annotations

import argparse

from vtc.commands._model import DTYPES


def add_model(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--config`, `--device`, `--dtype`."""
    parser.add_argument(
        "--model", default="reference", help="hub id, folder, or 'reference' (default)"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON with compression settings")
    add_place(parser)


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
