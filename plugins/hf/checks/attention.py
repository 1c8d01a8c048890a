"""The compressed model under each attention backend."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vtc.plugins.hf.checks import compare, runs
from vtc.plugins.hf.checks.outcome import Differs, Found, NotRun, Outcome, first_line, outcome
from vtc.plugins.hf.checks.subject import Subject
from vtc.plugins.hf.typing import Model
from vtc.report import ImageReport

#: attention backends, the first that runs is what the others are compared with
BACKENDS = ("eager", "sdpa", "flash_attention_2", "flex_attention")


def attention(subject: Subject) -> Iterator[Outcome]:
    """The compressed model under each attention backend, against the first one that runs."""
    reference: list[tuple[str, Tensor, list[ImageReport]]] = []

    def check(name: str) -> Found:
        _available(name, subject.model)
        with _backend(subject.model, name), subject.compressed() as handle:
            logits = runs.generated(subject, subject.rows[0])
        if not torch.isfinite(logits).all():
            raise Differs("logits are not finite")
        images = handle.reports[0].images
        if not reference:
            reference.append((name, logits, images))
            return Found("runs, the others are compared with it")
        other, wanted, others = reference[0]
        apart = compare.distance(logits, wanted)
        if not apart <= subject.limit:
            text = f"logits are from {other}'s"
            raise compare.difference(subject, text, apart, compare.moved(images, others))
        return Found(f"logits are from {other}'s {compare.in_words(apart, subject)}", apart)

    for name in BACKENDS:
        yield outcome(f"attention: {name}", subject.name, functools.partial(check, name))


def _available(name: str, model: Model) -> None:
    """Raise `NotRun` where a backend cannot work."""
    device = next(model.parameters()).device
    if name == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None:
            raise NotRun("the package flash_attn is not installed")
        if device.type == "cpu":
            raise NotRun("needs a GPU")
        if model.dtype not in (torch.float16, torch.bfloat16):
            raise NotRun("needs half precision: --dtype bfloat16")
    if name == "flex_attention" and device.type == "cpu":
        raise NotRun("needs a GPU")


@contextlib.contextmanager
def _backend(model: Model, name: str) -> Iterator[None]:
    """Attention by `name` inside the block, by what it was behind it."""
    configs = {id(config): config for config in _configs(model)}.values()
    before = [(config, config._attn_implementation_internal) for config in configs]
    try:
        try:
            model.set_attn_implementation(name)
        except (ValueError, ImportError, NotImplementedError) as error:
            raise NotRun(first_line(error)) from error
        yield
    finally:
        for config, own in before:
            config._attn_implementation_internal = own


def _configs(model: Model) -> Iterator[Any]:
    for module in model.modules():
        config = getattr(module, "config", None)
        for part in (config, *(vars(config).values() if hasattr(config, "__dict__") else ())):
            if hasattr(part, "_attn_implementation_internal"):
                yield part
