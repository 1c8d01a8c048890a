"""Published systems as presets: a name, the sizes of the paper, and a `tiny_` twin for a CPU.

A preset is a function of a few options; nothing that it builds knows the system's name.
"""

from __future__ import annotations

from typing import Any

from vtc.discrete.generator import Generator
from vtc.discrete.presets.generators import GENERATORS
from vtc.discrete.presets.tokenizers import TOKENIZERS
from vtc.discrete.tokenizer import ImageTokenizer
from vtc.registry import create, names


def list_tokenizers(pattern: str = "*") -> list[str]:
    """Names of tokenizer presets that match a glob, sorted."""
    return names(TOKENIZERS, pattern)


def list_generators(pattern: str = "*") -> list[str]:
    """Names of generator presets that match a glob, sorted."""
    return names(GENERATORS, pattern)


def create_tokenizer(name: str, **options: Any) -> ImageTokenizer:
    """The tokenizer preset `name`; `options` are the arguments of its function.

    Raises:
        VTCError: unknown name or option, or a value that does not fit.
    """
    model = create(TOKENIZERS, "tokenizer", name, **options)
    model.recipe = {"kind": "tokenizer", "name": name, "options": options}
    return model


def create_generator(name: str, **options: Any) -> Generator:
    """The generator preset `name`; `options` are the arguments of its function.

    Raises:
        VTCError: unknown name or option, or a value that does not fit.
    """
    model = create(GENERATORS, "generator", name, **options)
    model.recipe = {"kind": "generator", "name": name, "options": options}
    return model
