"""`python -m vtc.kernels.bench`: measure, print, save."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vtc.eval.common.docs import put
from vtc.eval.common.manifest import device_name
from vtc.eval.kernels import bench
from vtc.eval.kernels.bench.device import ceilings
from vtc.eval.kernels.bench.official import official_style
from vtc.eval.kernels.bench.operations import OPERATIONS, correctness, is_right, operation_times
from vtc.eval.kernels.bench.selection import clock, language_model, methods, selections
from vtc.eval.kernels.bench.sizes import FULL, LAYERS, LAYOUTS, SMALL, Sizes
from vtc.eval.kernels.bench.tables import markdown
from vtc.eval.kernels.floors import Card


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Everything that the arguments ask for."""
    device = torch.device(given.device)
    sizes = SMALL if given.small else FULL
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    layers = given.layers or (LAYERS if on_gpu else 1)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    result: dict[str, Any] = {
        "about": {
            "machine": device_name(device),
            "threads": torch.get_num_threads(),
            "dtype": str(dtype)[6:],
            "torch": torch.__version__,
            "load": load,
            "clock": clock(device)[1],
            "layers": layers,
            "retention": given.retention,
            "rounds": given.rounds,
            "sizes": sizes.__dict__,
        },
        "correctness": [],
        "operations": [],
        "selections": [],
        "official_style": [],
    }
    dtypes = [torch.float32, *([torch.float16, torch.bfloat16] if on_gpu else [])]
    if "operations" in given.parts:
        for name in given.operations:
            result["correctness"] += [correctness(name, sizes, device, each) for each in dtypes]
        if on_gpu:
            card = ceilings(device)
            result["ceilings"] = card.__dict__
            result["operations"] = list(_operations(given, sizes, device, card))
    if "selection" in given.parts:
        model = language_model(sizes, layers, device, dtype)
        for tokens in given.tokens:
            batches = given.batch or ([1, 2, 4, 8, 16, 32] if on_gpu else [1, 8])
            # batches share a prefill on the CPU; on a GPU one may not fit
            for some in [[batch] for batch in batches] if on_gpu else [batches]:
                arguments = (tokens, some, sizes, model, device, dtype, given.rounds)
                try:
                    rows = selections(given.methods, *arguments, given.retention)
                except torch.OutOfMemoryError:
                    why = {"tokens": tokens, "batch": some[0], "why": "does not fit in memory"}
                    rows = [why]
                    torch.cuda.empty_cache()
                result["selections"] += rows
                print(f"{tokens} tokens, batch {some}: done", file=sys.stderr)
    if "official" in given.parts:
        result["official_style"] = official_style(sizes, device, given.rounds)
    return result


def _operations(
    given: argparse.Namespace, sizes: Sizes, device: torch.device, card: Card
) -> Iterator[dict[str, Any]]:
    """A row for each operation, number of tokens and batch."""
    for tokens in given.tokens:
        tiles = LAYOUTS[tokens][0].images * LAYOUTS[tokens][0].tiles
        for batch in given.batch or [1, 8]:
            here = replace(sizes, tiles=tiles * batch)
            for name in given.operations:
                torch._dynamo.reset()
                compiling = tokens in given.compiled
                arguments = (name, here, device, torch.float16, given.rounds, card, compiling)
                try:
                    row = operation_times(*arguments)
                except torch.OutOfMemoryError:
                    print(f"{name} at {tokens} x {batch}: out of memory", file=sys.stderr)
                    continue
                finally:
                    torch.cuda.empty_cache()
                yield {"tokens": tokens, "batch": batch, **row}
            print(f"operations at {tokens} tokens, batch {batch}: done", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, save; exits with 1 where an operation is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m vtc.kernels.bench",
        description=bench.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, help=f"run this many of {LAYERS}; 1 on the CPU")
    parser.add_argument("--methods", nargs="+", choices=methods(), default=methods())
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument(
        "--compiled",
        nargs="*",
        type=int,
        choices=LAYOUTS,
        default=[2880],
        help="tokens at which the twins of operations are compiled, too",
    )
    parser.add_argument("--tokens", nargs="+", type=int, choices=LAYOUTS, help="visual tokens")
    parser.add_argument(
        "--batch", nargs="+", type=int, help="default: 1 and 8, of selections on a GPU 1 to 32"
    )
    parser.add_argument("--retention", type=float, default=0.25)
    parts = ("operations", "selection", "official")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--small", action="store_true", help="tiny widths, to try the command")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--markdown", type=Path, help="file of the docs that gets the tables")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing below was timed on one; this is the part of --device cpu")
        given.device = "cpu"
    on_gpu = given.device == "cuda"
    given.tokens = given.tokens or list(LAYOUTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's remarks on the machine
        result = run(given)
    wrong = [row for row in result["correctness"] if not is_right(row)]
    for row in result["correctness"]:
        verdict = "WRONG" if row in wrong else "ok"
        print("{operation} {dtype}: error {error:.1e}, equal {agree:.2%}".format(**row), verdict)
    print(markdown(result), end="")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if given.markdown:
        put(given.markdown, "gpu" if on_gpu else "cpu", markdown(result))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
