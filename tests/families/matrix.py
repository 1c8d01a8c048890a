"""Families x methods x ways to run x padding x positions: one cell at a time, and the support table.

    python -m tests.families.matrix --output docs/support.md      # the whole matrix
    python -m tests.families.matrix --only qwen internvl          # some families, to the screen

A cell holds when the compressed model gives what `by_hand` gives, row by row, from a padded batch.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import itertools
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vtc
from tests.families import by_hand, tiny
from vtc.methods.base import Method

NEW = 4
MODES: dict[str, dict[str, Any]] = {
    "forward": {},
    "greedy": dict(do_sample=False),
    "sampled": dict(do_sample=True, top_k=8),
    "beams": dict(do_sample=False, num_beams=3),
    "static cache": dict(do_sample=False, cache_implementation="static"),
    "chunked prefill": dict(do_sample=False, prefill_chunk_size=7),
    "assisted": dict(do_sample=False, prompt_lookup_num_tokens=2),
}
SIDES = ("left", "right")
POSITIONS = ("original", "contiguous", "regrid")
METHODS = (
    "random",
    "uniform",
    "pool",
    "globalcom2",
    "token_correlation",
    "recoverable",
    "tokenflex",
)


def cases() -> list[tuple[str, bool]]:
    """`(family, with clips)` of the whole matrix."""
    return [
        (name, video)
        for name, family in tiny.FAMILIES.items()
        for video in ((False, True) if "video" in family.kinds else (False,))
    ]


@functools.lru_cache(maxsize=2)
def model_of(name: str) -> Any:
    return tiny.build(name)


def _text_encoder(width: int) -> Any:
    """A made-up shared space: two callables, as a user may give."""
    rng = torch.Generator().manual_seed(5)
    project = torch.randn(width, 16, generator=rng)

    def embed(text: str) -> Tensor:
        return torch.randn(16, generator=torch.Generator().manual_seed(len(text)))

    return embed, lambda hidden: hidden.float() @ project.to(hidden.device)


def method_of(name: str, family: str, video: bool) -> Method:
    """The method at retention 0.5; clips get a budget per frame every other time."""
    options: dict[str, Any] = {"retention": 0.5}
    if name == "recoverable":
        from vtc.plugins.hf.adapters import adapter_for

        model = model_of(family)
        width = adapter_for(model).width(model.base_model)
        options |= dict(question="what is it", text_encoder=_text_encoder(width))
    if video and METHODS.index(name) % 2:
        options["video"] = "frame"
    return vtc.create_method(name, **options)


@functools.lru_cache(maxsize=64)
def reference(family: str, video: bool, method: str, positions: str, row: int) -> by_hand.Short:
    batch = tiny.alone(family, tiny.rows_of(family, video), row)
    return by_hand.shorten(model_of(family), batch, method_of(method, family, video), positions)


def ask_of(mode: str) -> dict[str, Any]:
    return dict(MODES[mode], max_new_tokens=NEW, min_new_tokens=NEW, return_dict_in_generate=False)


@functools.lru_cache(maxsize=None)
def upstream(family: str, video: bool, mode: str, side: str) -> str:
    """Why the bare model cannot run so itself, empty where it can."""
    if mode == "forward":
        return ""
    batch = tiny.inputs(family, tiny.rows_of(family, video), side=side)
    if mode == "assisted":  # transformers assists one prompt at a time
        batch = tiny.alone(family, tiny.rows_of(family, video), 0)
    try:
        with torch.no_grad():
            model_of(family).generate(**batch, **ask_of(mode))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def cell(family: str, video: bool, method: str, mode: str, side: str, positions: str) -> str:
    """`"ok"`, or `"upstream: ..."` where the bare model fails too.

    Raises:
        AssertionError: the compressed model differs from the reference.
    """
    reason = upstream(family, video, mode, side)
    if reason:
        return f"upstream: {reason}"
    rows = tiny.rows_of(family, video)
    model = model_of(family)
    with (
        torch.no_grad(),
        vtc.compress(model, method_of(method, family, video), positions=positions),
    ):
        batch = tiny.inputs(family, rows, side=side)
        if mode == "forward":
            got = model(**batch).logits
        elif mode in ("sampled", "assisted"):  # one random stream, or one prompt, at a time
            got = []
            for row in range(len(rows)):
                torch.manual_seed(row)
                one = tiny.alone(family, rows, row)
                out = model.generate(**one, **ask_of(mode))
                got.append(out[0, one["input_ids"].shape[1] :].tolist())
        else:
            out = model.generate(**batch, **ask_of(mode))
            assert torch.equal(out[:, : batch["input_ids"].shape[1]], batch["input_ids"])
            got = out[:, batch["input_ids"].shape[1] :].tolist()
    for row in range(len(rows)):
        short = reference(family, video, method, positions, row)
        if mode == "forward":
            length = short.ids.shape[1]
            mine = got[row, -length:] if side == "left" else got[row, :length]
            torch.testing.assert_close(mine, by_hand.logits(model, short), atol=2e-3, rtol=1e-3)
            continue
        torch.manual_seed(row)
        plain = "greedy" if mode in ("static cache", "chunked prefill", "assisted") else mode
        expected = by_hand.generate(model, short, **ask_of(plain))
        assert got[row] == expected, f"row {row}: {got[row]}, by hand {expected}"
    return "ok"


def tokenflex_reason(family: str) -> str:
    """What tokenflex says where it cannot work."""
    return "scales the canvas down" if family == "llava_onevision_shrunk" else ""
