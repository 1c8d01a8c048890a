"""Families x methods x ways to run x padding x positions: one cell at a time, and the support table.

    python -m tests.families.matrix --output docs/support.md --jobs 2   # the whole matrix
    python -m tests.families.matrix --modes forward greedy --sides left   # a quick look
    python -m tests.families.matrix --only qwen internvl                  # some families

A cell holds when the compressed model gives what `by_hand` gives, row by row, from a padded batch. Ways
to call beside one forward or `generate` are in `ways.py` and have a table of their own.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import vtc
from tests import asking
from tests.families import by_hand, docowl, mllama, small, support, tiny, ways
from tests.families.samples import Setting
from tests.families.support import Cells
from tests.layers import cells as layer_cells
from vtc.methods.base import Method
from vtc.methods.compares_frames import ComparesFrames
from vtc.plugins.hf.adapters import adapter_for
from vtc.plugins.model.signals import ENCODED
from vtc.registry import compared_methods, method_class

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
METHODS = compared_methods(where="boundary")
#: those that leave positions as they are; what is in front of the tower, and inside the language model
OTHERS = [*compared_methods(where="pixels"), *layer_cells.METHODS]
#: those that run in every way of `ways.py`: one that selects, one that merges, one that reads signals
WAY_METHODS = ("uniform", "pool", "globalcom2")


def cases() -> list[tuple[str, bool]]:
    """`(family, with clips)` of the whole matrix."""
    return [
        (name, video)
        for name, family in tiny.FAMILIES.items()
        for video in ((False, True) if "video" in family.kinds else (False,))
    ]


#: families that are not made of one placeholder a token; their batches have no padding
INSIDE: dict[str, Any] = {"mllama": mllama, "docowl": docowl}


@functools.lru_cache(maxsize=2)
def model_of(name: str) -> Any:
    return INSIDE[name].build() if name in INSIDE else tiny.build(name)


def has_twin(family: str) -> bool:
    """Whether a text tower was trained with vision towers of this kind."""
    tower = getattr(model_of(family).config, "vision_config", None)
    return getattr(tower, "model_type", "") in ("clip_vision_model", "siglip_vision_model")


def condition(family: str, method: str) -> str:
    """What a method needs on a family, and was given here; empty where it works by itself."""
    if method_class(method).projects:
        return "with a projector trained for the model; here one that was not trained"
    if method == "learned":
        return "with a scorer trained for the model; here one that was not trained"
    made = vtc.create_method(method)
    if not any(request.kind in ENCODED for request in made.requests().values()):
        return ""
    similar = "`text_score='similarity'`" if hasattr(made, "text_score") else ""
    if has_twin(family):
        return (
            "with a text encoder, here a made-up one: `text_encoder=` takes the CLIP or SigLIP model "
            f"that the vision tower comes from{similar and f'; {similar} needs none'}"
        )
    if family == "mllama":
        return "with a text encoder of your own alone (`text_encoder=`), here a made-up one"
    return (
        f"with {similar and f'{similar}, or with '}a text encoder of your own, here a made-up one: no "
        "CLIP or SigLIP model goes with this vision tower"
    )


def method_of(name: str, family: str, video: bool, retention: float = 0.5) -> Method:
    """The method; clips get a budget per frame every other time."""
    options: dict[str, Any] = {"retention": retention}
    model = model_of(family)
    options |= asking.options(name, adapter_for(model).width(model.base_model))
    if method_class(name).projects:
        options["projector"] = tiny.projector(model)
    if video and METHODS.index(name) % 2 and not issubclass(method_class(name), ComparesFrames):
        options["video"] = "frame"
    return vtc.create_method(name, **options)


@functools.lru_cache(maxsize=64)
def reference(family: str, video: bool, method: str, positions: str, row: int) -> by_hand.Short:
    batch = tiny.alone(family, tiny.rows_of(family, video), row)
    return by_hand.shorten(model_of(family), batch, method_of(method, family, video), positions)


@functools.lru_cache(maxsize=256)
def expected(
    family: str, video: bool, method: str, mode: str, positions: str, row: int
) -> tuple[int, ...] | Tensor:
    """What the language model alone gives: tokens, or for a forward its logits."""
    short = reference(family, video, method, positions, row)
    if mode == "forward":
        return by_hand.logits(model_of(family), short)
    torch.manual_seed(row)
    return tuple(by_hand.generate(model_of(family), short, **ask_of(mode)))


def ask_of(mode: str) -> dict[str, Any]:
    return dict(MODES[mode], max_new_tokens=NEW, min_new_tokens=NEW, return_dict_in_generate=False)


@functools.cache
def upstream(family: str, video: bool, mode: str, side: str) -> str:
    """Why the bare model cannot run so itself, empty where it can."""
    if family in INSIDE:
        return _upstream_inside(family, mode)
    if mode == "forward":
        return ""
    batch = tiny.inputs(family, tiny.rows_of(family, video), side=side)
    if mode == "assisted":  # transformers assists one prompt at a time
        batch = tiny.alone(family, tiny.rows_of(family, video), 0)
    try:
        with torch.no_grad():
            got = model_of(family).generate(**batch, **ask_of(mode))
            if mode in ("static cache", "chunked prefill", "assisted"):
                if not torch.equal(got, model_of(family).generate(**batch, **ask_of("greedy"))):
                    return "other tokens than greedy decoding"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def cell(family: str, video: bool, method: str, mode: str, side: str, positions: str) -> str:
    """`"ok"`, or `"upstream: ..."` where the bare model fails too.

    Raises:
        AssertionError: the compressed model differs from the reference.
    """
    if mode in ways.WAYS:
        return way(family, video, method, mode, side, positions)
    if method not in METHODS:
        return _elsewhere(family, video, method, mode, side)
    if family in INSIDE:
        return _inside(family, method, mode, positions)
    reason = upstream(family, video, mode, side)
    if reason:
        return f"upstream: {reason}"
    rows = tiny.rows_of(family, video)
    model = model_of(family)
    with (
        torch.no_grad(),
        vtc.compress(
            model,
            method_of(method, family, video),
            processor=asking.tokenizer(),
            positions=positions,
        ),
    ):
        batch = tiny.inputs(family, rows, side=side)
        if mode == "forward":
            got = model(**batch).logits
        elif mode in ("sampled", "assisted"):  # one random stream, or one prompt, at a time
            got = []
            for row in range(len(rows)):
                torch.manual_seed(row)
                one = tiny.alone(family, rows, row, side=side, padded=bool(rows[row]))
                out = model.generate(**one, **ask_of(mode))
                got.append(out[0, one["input_ids"].shape[1] :].tolist())
        else:
            out = model.generate(**batch, **ask_of(mode))
            assert torch.equal(out[:, : batch["input_ids"].shape[1]], batch["input_ids"])
            got = out[:, batch["input_ids"].shape[1] :].tolist()
    for row in range(len(rows)):
        if mode == "forward":
            want = expected(family, video, method, mode, positions, row)
            mine = got[row, -len(want) :] if side == "left" else got[row, : len(want)]
            torch.testing.assert_close(mine, want, atol=2e-3, rtol=1e-3)
            continue
        plain = mode if mode in ("sampled", "beams") else "greedy"
        want = expected(family, video, method, plain, positions, row)
        assert tuple(got[row]) == want, f"row {row}: {got[row]}, by hand {list(want)}"
    return "ok"


def _elsewhere(family: str, video: bool, method: str, mode: str, side: str) -> str:
    """`cell` for methods that do not work in front of the language model."""
    ask = None if mode == "forward" else ask_of(mode)
    if family in INSIDE:
        vtc.apply(model_of(family), method).remove()  # refused
        raise AssertionError("not refused, and there is no reference")
    reason = upstream(family, video, mode, side)
    if reason:
        return f"upstream: {reason}"
    if method_class(method).where == "pixels":
        return small.cell(family, video, mode, side, ask)
    return layer_cells.cell(family, video, method, mode, side, ask)


def way(family: str, video: bool, method: str, name: str, side: str, positions: str) -> str:
    """`cell` for a way of `ways.py`; what the bare model gets wrong is of interest where we fail."""
    model, chosen = model_of(family), method_of(method, family, video)
    try:
        ways.run(Setting(family, model, chosen, positions), name, video, side)
    except vtc.VTCError:
        raise
    except Exception:
        reason = upstream_way(family, video, name, side)
        if not reason:
            raise
        return f"upstream: {reason}"
    return "ok"


@functools.cache
def upstream_way(family: str, video: bool, name: str, side: str) -> str:
    """Why the bare model cannot be called in this way, empty where it can."""
    try:
        ways.run(Setting(family, model_of(family), None), name, video, side)
    except AssertionError:
        return "other logits than for each sample alone"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def _run(model: Any, batch: dict[str, Any], mode: str) -> Tensor:
    """Logits of a forward, or tokens."""
    torch.manual_seed(0)
    with torch.no_grad():
        return (
            model(**batch).logits if mode == "forward" else model.generate(**batch, **ask_of(mode))
        )


def _batch_inside(family: str, mode: str) -> dict[str, Any]:
    batch = INSIDE[family].inputs()
    return INSIDE[family].first_row(batch) if mode == "assisted" else batch


def _upstream_inside(family: str, mode: str) -> str:
    if mode in INSIDE[family].IMPOSSIBLE:
        return INSIDE[family].IMPOSSIBLE[mode]
    model, batch = model_of(family), _batch_inside(family, mode)
    try:
        got = _run(model, batch, mode)
        if mode not in ("forward", "sampled", "beams"):
            if not torch.equal(got, _run(model, batch, "greedy")):
                return "other tokens than greedy decoding"
        with INSIDE[family].given(model, batch, None):
            if not torch.equal(got, _run(model, batch, mode)):
                return "rows do not get their own images"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def _inside(family: str, method: str, mode: str, positions: str) -> str:
    """`cell` for the families of `INSIDE`: the bare model is given what is left of the tiles."""
    model, batch = model_of(family), _batch_inside(family, mode)
    chosen = method_of(method, family, False)
    guided = {"processor": asking.tokenizer(), "positions": positions}
    vtc.apply(model, chosen, **guided).remove()  # refused before anything else
    reason = upstream(family, False, mode, "left")
    if reason:
        return f"upstream: {reason}"
    try:
        with vtc.compress(model, chosen, **guided):
            got = _run(model, batch, mode)
    except vtc.VTCError:
        raise
    except Exception as error:  # as with prompt lookup, where a draft is found
        try:
            with INSIDE[family].given(model, batch, chosen):
                _run(model, batch, mode)
        except type(error):
            return (
                f"upstream: {type(error).__name__} in the bare model that is given the same patches"
            )
        raise
    plain = mode if mode in ("forward", "sampled", "beams") else "greedy"
    with INSIDE[family].given(model, batch, chosen):
        want = _run(model, batch, plain)
    if mode == "forward":
        torch.testing.assert_close(got, want, atol=2e-3, rtol=1e-3)
    assert mode == "forward" or torch.equal(got, want), f"{got.tolist()}, by hand {want.tolist()}"
    return "ok"


def identity(family: str, video: bool, mode: str, side: str) -> str:
    """`"ok"` where retention 1.0 gives the very bits of the bare model."""
    reason = upstream(family, video, mode, side)
    if reason:
        return f"upstream: {reason}"
    model = model_of(family)
    if family in INSIDE:
        batch = _batch_inside(family, mode)
    else:
        batch = tiny.inputs(family, tiny.rows_of(family, video), side=side)
    if mode == "assisted" and family not in INSIDE:
        batch = tiny.alone(family, tiny.rows_of(family, video), 0, side=side, padded=True)

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        if mode == "forward":
            return [model(**batch).logits]
        ask = ask_of(mode) | dict(return_dict_in_generate=True, output_logits=mode != "assisted")
        out = model.generate(**batch, **ask)
        return [out.sequences, *(out.logits or ())]

    with torch.no_grad():
        plain = run()
        with vtc.compress(model, "globalcom2", retention=1.0):
            ours = run()
    assert all(map(torch.equal, ours, plain)), "retention 1.0 changes bits"
    return "ok"


Job = tuple[str, bool, str, tuple[str, ...], tuple[str, ...]]


def run_case(job: Job) -> Cells:
    """All cells of one family and method: `(mode, side, positions)` to `"ok"` or why not."""
    family, video, method, modes, sides = job
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()  # it warns of right padding, which we repair
    out: Cells = {}
    for mode in modes:
        if mode in ways.WAYS and (method not in WAY_METHODS or family in INSIDE):
            continue
        for side in sides:
            if mode in ways.ONE_SIDED and side != SIDES[0]:
                continue
            for positions in POSITIONS if method in METHODS else ("original",):
                try:
                    if method == "none":
                        out[mode, side, positions] = identity(family, video, mode, side)
                    else:
                        out[mode, side, positions] = cell(
                            family, video, method, mode, side, positions
                        )
                except vtc.VTCError as error:
                    out[mode, side, positions] = f"refused: {error}"
                except Exception as error:
                    text = str(error).strip().splitlines() or [""]
                    out[mode, side, positions] = f"FAILED: {type(error).__name__}: {text[0]}"
    return out


def _timed(job: Job) -> tuple[Cells, float]:
    start = time.process_time()
    return run_case(job), time.process_time() - start


def _load(path: Path | None) -> tuple[dict[tuple[str, bool, str], Cells], float]:
    """Finished cells by job, and the seconds they took."""
    results: dict[tuple[str, bool, str], Cells] = {}
    if path is None or not path.exists():
        return results, 0.0
    saved = json.loads(path.read_text())
    for family, video, method, *key, text in saved["cells"]:
        results.setdefault((family, video, method), {})[tuple(key)] = text
    return results, saved["seconds"]


def main(argv: list[str] | None = None) -> int:
    """Run the matrix; 1 when a cell fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="file for the table; default: the screen")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of family names")
    parser.add_argument("--methods", nargs="*", default=["none", *METHODS, *OTHERS])
    parser.add_argument("--modes", nargs="*", default=[*MODES, *ways.WAYS])
    parser.add_argument("--sides", nargs="*", default=list(SIDES))
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--resume", type=Path, help="JSON file of finished cells to go on from")
    args = parser.parse_args(argv)
    jobs = [
        (
            family,
            video,
            method,
            tuple(args.modes),
            tuple(args.sides[: 1 if family in INSIDE else 2]),
        )
        for family, video in [*cases(), *((name, False) for name in INSIDE)]
        if any(part in family for part in args.only)
        for method in args.methods
    ]
    results, seconds = _load(args.resume)
    todo = [job for job in jobs if job[:3] not in results]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for job, (cells, spent) in zip(todo, pool.imap(_timed, todo), strict=True):
            results[job[:3]], seconds = cells, seconds + spent
            wrong = {key: text for key, text in cells.items() if text.startswith("FAILED")}
            print(*job[:3], wrong or "holds", f"{spent:.0f} s", file=sys.stderr, flush=True)
            if args.resume:
                done = [(*job, *key, text) for job, c in results.items() for key, text in c.items()]
                args.resume.write_text(json.dumps({"seconds": seconds, "cells": done}))
    chosen = {job[:3]: results[job[:3]] for job in jobs}
    text = support.table(chosen, list(MODES), list(POSITIONS), condition, seconds / 60)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text)
    else:
        print(text)
    return int(any("FAILED" in text for cells in results.values() for text in cells.values()))


if __name__ == "__main__":
    sys.exit(main())
