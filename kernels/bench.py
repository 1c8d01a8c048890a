"""Correctness and times of the kernels, and of whole selections: `python -m vtc.kernels.bench`.

On a GPU: each operation against its PyTorch twin in float64, then its time against the twin, against
`torch.compile` of the twin and against the floor (`floors.py`), with CUDA events and the L2 cache
flushed; then the selection of every method as a share of a 7B language model's prefill with random
weights. On the CPU (`--device cpu`, and where there is no GPU): the correctness of the twins, the
selection of every method against the prefill of the language model at the same number of tokens, and
both methods with official code against stand-ins written in its style (`standins.py`).

Shapes are LLaVA-NeXT-7B's: CLIP-L/14 at 336 pixels, a thumbnail and four crops, width 4096, 32 heads,
32 layers. `--layers` of them are run and the time is scaled to 32, linear in layers: embedding and last
norm count in every layer's favour. A selection begins at queries, keys and hidden states of the vision
tower and ends at the tokens handed on; the text tower of text-guided methods is left out, since its
result is kept for each question.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vtc.errors import VTCError
from vtc.eval.timing import interleaved, ratio, spread, stopwatch
from vtc.functional.recoverable import text_scores, visual_scores
from vtc.kernels import (
    adaptive_pool,
    attention_received,
    bit_packing,
    cls_attention,
    cosine_topk,
    lof,
    merge,
    neighbour_count,
    ragged_compact,
    segmented_topk,
    standins,
)
from vtc.kernels._docs import put
from vtc.kernels.floors import CARDS, WORK
from vtc.methods.base import Method
from vtc.registry import create_method, list_methods
from vtc.tokens import CompressedTokens, VisualTokens

LAYERS = 32
#: what is timed of an operation
CALLS = ("kernel", "twin", "compiled twin")
#: visual tokens -> images, and the crops of each
COUNTS: dict[int, tuple[int, tuple[int, int] | None]] = {
    576: (1, None),
    2880: (1, (2, 2)),
    14400: (5, (2, 2)),
}


@dataclass(frozen=True)
class Sizes:
    """What is measured at: a model's widths.

    Attributes:
        side: rows and columns of a tile's patches.
        heads, head_width: of the vision tower.
        width: of the language model.
        inner: of its MLP.
        space: of the shared text-image space.
    """

    side: int = 24
    heads: int = 16
    head_width: int = 64
    width: int = 4096
    inner: int = 11008
    space: int = 768

    @property
    def vision(self) -> int:
        """Width of the vision tower."""
        return self.heads * self.head_width


FULL, SMALL = Sizes(), Sizes(side=4, heads=2, head_width=8, width=32, inner=64, space=8)


# -- single operations ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """An operation with its twin and inputs.

    Attributes:
        call, twin: the same arguments each.
        inputs: arguments, made by a function of sizes, device and dtype.
    """

    call: Callable[..., Any]
    twin: Callable[..., Any]
    inputs: Callable[[Sizes, torch.device, torch.dtype], tuple[Any, ...]]


def _normal(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def _heads(sizes: Sizes, extra: int, device: Any, dtype: Any) -> Tensor:
    shape = (5, sizes.side**2 + extra, sizes.heads, sizes.head_width)
    return _normal(device, dtype, *shape).transpose(1, 2)


def _scores(sizes: Sizes, device: Any) -> tuple[Tensor, Tensor]:
    scores = _normal(device, torch.float32, 5, sizes.side**2)
    return scores, torch.ones_like(scores, dtype=torch.bool)


def _cls(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    keys = _heads(sizes, 1, device, dtype)
    return keys[:, :, 0], keys, sizes.head_width**-0.5


def _received(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    heads = _heads(sizes, 0, device, dtype)
    return heads, heads.flip(2), sizes.head_width**-0.5


def _topk(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    scores, valid = _scores(sizes, device)
    return scores, torch.full((5,), sizes.side**2 // 4, device=device), valid


def _cosines(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    keys = _normal(device, dtype, 5, sizes.side**2, sizes.vision)
    itself = torch.arange(min(32, sizes.side), device=device).expand(5, -1)
    return keys[:, : itself.shape[1]], keys, 32, *_scores(sizes, device), itself


def _merged(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    rows = 5 * sizes.side**2
    values = _normal(device, dtype, rows, sizes.vision)
    entry = torch.arange(rows, device=device)
    return values, entry // 4, entry, torch.ones(rows, device=device), math.ceil(rows / 4)


def _pooled(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    features = _normal(device, dtype, 5, sizes.side**2, sizes.vision)
    bins = max(sizes.side // 3, 1)
    return features, (sizes.side, sizes.side), (bins, bins), _scores(sizes, device)[1]


def _compacted(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    rows = 5 * sizes.side**2
    index = torch.arange(0, rows, 4, device=device)
    splits = torch.tensor([0, len(index)], device=device)
    return _normal(device, dtype, rows, sizes.width), index, splits, len(index), True, 0


def _bits(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    return _normal(device, torch.float32, 32, sizes.side**2, 16) > 0, 16, torch.int64


OPERATIONS: dict[str, Operation] = {
    "cls_attention": Operation(
        cls_attention.cls_attention, cls_attention.cls_attention_torch, _cls
    ),
    "attention_received": Operation(
        attention_received.attention_received,
        attention_received.attention_received_torch,
        _received,
    ),
    "segmented_topk": Operation(
        segmented_topk.segmented_topk, segmented_topk.segmented_topk_torch, _topk
    ),
    "lof": Operation(
        lof.local_outlier_factor,
        lof.local_outlier_factor_torch,
        lambda sizes, device, dtype: (_scores(sizes, device)[0], 20, _scores(sizes, device)[1]),
    ),
    "neighbour_count": Operation(
        neighbour_count.neighbour_count,
        neighbour_count.neighbour_count_torch,
        lambda sizes, device, dtype: (
            _normal(device, dtype, 5, sizes.side**2, sizes.vision),
            0.05,
            _scores(sizes, device)[1],
        ),
    ),
    "cosine_topk": Operation(cosine_topk.cosine_topk, cosine_topk.cosine_topk_torch, _cosines),
    "merge": Operation(merge.weighted_merge, merge.weighted_merge_torch, _merged),
    "adaptive_pool": Operation(
        adaptive_pool.adaptive_pool, adaptive_pool.adaptive_pool_torch, _pooled
    ),
    "ragged_compact": Operation(
        ragged_compact.ragged_compact, ragged_compact.ragged_compact_torch, _compacted
    ),
    "bit_packing": Operation(bit_packing.pack_bits, bit_packing.pack_bits_torch, _bits),
}


def correctness(
    name: str, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """The operation against its twin on the same numbers in float64.

    Returns:
        `error`, the largest difference over the largest value of float results, and `agree`, the
        share of equal whole numbers; a rank may differ where values are closer than rounding.
    """
    inputs = OPERATIONS[name].inputs(sizes, device, dtype)
    wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    got, want = OPERATIONS[name].call(*inputs), OPERATIONS[name].twin(*wide)
    pairs = zip(
        got if isinstance(got, tuple) else (got,),
        want if isinstance(want, tuple) else (want,),
        strict=True,
    )
    error, agree = 0.0, 1.0
    for a, b in pairs:
        if b.is_floating_point():
            scale = float(b.abs().max().clamp(min=1e-12))
            error = max(error, float((a.double() - b).abs().max()) / scale)
        else:
            agree = min(agree, float((a == b).double().mean()))
    return {"operation": name, "dtype": str(dtype)[6:], "error": error, "agree": agree}


def is_right(row: Mapping[str, Any]) -> bool:
    """Whether a row of `correctness` is within rounding."""
    return row["error"] <= (1e-4 if row["dtype"] == "float32" else 1e-2) and row["agree"] >= 0.98


def operation_times(
    name: str, sizes: Sizes, device: torch.device, dtype: torch.dtype, rounds: int
) -> dict[str, Any]:
    """Microseconds of kernel, twin and compiled twin on a GPU: median and quartiles."""
    operation = OPERATIONS[name]
    inputs = operation.inputs(sizes, device, dtype)
    compiled = torch.compile(operation.twin)
    calls = dict(zip(CALLS, (operation.call, operation.twin, compiled), strict=True))
    flush = torch.empty(256 << 20, dtype=torch.uint8, device=device)  # larger than any L2

    def time(call: Callable[..., Any]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        begin.record()
        call(*inputs)
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) * 1e3

    for label, call in list(calls.items()):
        try:
            for _ in range(3):
                call(*inputs)
        except Exception as error:
            if call is not compiled:
                raise
            print(f"{name}: torch.compile of the twin failed: {error}", file=sys.stderr)
            del calls[label]
    times = interleaved(
        {label: functools.partial(time, call) for label, call in calls.items()}, rounds
    )
    floors = {card: 1e6 * WORK[name]().seconds(what) for card, what in CARDS.items()}
    spreads = {label: spread(values) for label, values in times.items()}
    return {"operation": name, "dtype": str(dtype)[6:], "microseconds": spreads, "floor": floors}


# -- whole selections ----------------------------------------------------------------------------


@dataclass
class Encoded:
    """What a vision tower leaves behind for B prompts.

    Attributes:
        query, keys: `[T, H, N + 1, d]`, of the layer that signals come from.
        hidden: `[T, N + 1, C]`.
        projected: `[T, N, D]`.
        newline: `[D]`.
        to_text: `[C, P]`, projection into the shared space.
        question: `[P]`.
        tiles: of each image.
        crops: of each image.
    """

    query: Tensor
    keys: Tensor
    hidden: Tensor
    projected: Tensor
    newline: Tensor
    to_text: Tensor
    question: Tensor
    tiles: int
    crops: tuple[int, int] | None

    @classmethod
    def random(
        cls,
        images: int,
        crops: tuple[int, int] | None,
        sizes: Sizes,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Encoded:
        """Random values, with what methods live on: half of the patches are much alike, and CLS looks
        at a few of the others much more than at the rest.
        """
        tiles = 1 if crops is None else 1 + crops[0] * crops[1]
        length = sizes.side**2
        shape = (images * tiles, length + 1, sizes.heads, sizes.head_width)
        query = _normal(device, dtype, *shape).transpose(1, 2)
        shared = _normal(device, dtype, 1, sizes.heads, 1, sizes.head_width)
        spot = _normal(device, dtype, len(query), 1, length + 1, 1)
        keys = query.flip(2)
        keys = (
            shared
            + torch.where(spot > 0, keys, keys / 10)
            + spot.relu() ** 2 / 32 * query[:, :, :1]
        )
        make = functools.partial(_normal, device, dtype)
        return cls(
            query,
            keys.transpose(1, 2).contiguous().transpose(1, 2),
            make(images * tiles, length + 1, sizes.vision),
            make(images * tiles, length, sizes.width),
            make(sizes.width),
            make(sizes.vision, sizes.space),
            make(sizes.space),
            tiles,
            crops,
        )

    def select(self, method: Method) -> list[CompressedTokens]:
        """From the tower's tensors to the tokens handed on."""
        return method.compress_all(self.images(method))

    def images(self, method: Method) -> list[VisualTokens]:
        """The images with the signals that the method reads."""
        skip = self.hidden[:, 1:]
        features = skip if method.stage == "vision" else self.projected
        signals = {name: self._signal(r.kind) for name, r in method.requests().items()}
        side = math.isqrt(features.shape[1])
        pixels = 14 * side
        crops = self.crops or (1, 1)
        return [
            VisualTokens(
                features=features[first : first + self.tiles],
                patch_grid=(side, side),
                tile_grid=self.crops,
                image_size=(crops[0] * pixels, crops[1] * pixels),
                newline=None if self.crops is None else self.newline,
                signals={
                    name: value if value.dim() == 1 else value[first : first + self.tiles]
                    for name, value in signals.items()
                },
                content_seed=first,
            )
            for first in range(0, len(features), self.tiles)
        ]

    def _signal(self, kind: str) -> Tensor:
        if kind in ("cls_logits", "cls_attention"):
            scale = self.query.shape[-1] ** -0.5
            logits, attention = cls_attention.cls_attention(self.query[:, :, 0], self.keys, scale)
            return (logits if kind == "cls_logits" else attention)[:, 1:]
        if kind == "cls_query":
            return self.query[:, :, 0].flatten(1)
        if kind == "keys":
            return self.keys.transpose(1, 2).flatten(2)
        return self.question if kind == "text_embedding" else self.hidden[:, 1:] @ self.to_text


def methods() -> list[str]:
    """The methods that select."""
    return [name for name in list_methods("*") if name != "none"]


def language_model(
    sizes: Sizes, layers: int, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    """A Llama of these widths with random weights."""
    try:
        from transformers import LlamaConfig, LlamaModel
    except ImportError as error:
        raise VTCError("transformers: not installed; pip install 'vtc-vlm[hf]'") from error
    config = LlamaConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.inner,
        num_hidden_layers=layers,
        num_attention_heads=max(sizes.width // 128, 1),
        vocab_size=32,
        max_position_embeddings=32768,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaModel(config).eval()
    finally:
        torch.set_default_dtype(before)


def selections(
    names: Sequence[str],
    tokens: int,
    batch: int,
    sizes: Sizes,
    model: torch.nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    retention: float,
) -> list[dict[str, Any]]:
    """Selection of each method against the prefill of as many tokens, round by round.

    Returns:
        A row for each method: seconds of selection and prefill (median and quartiles; prefill scaled
        to all layers) and their ratio.
    """
    images, crops = COUNTS[tokens]
    encoded = Encoded.random(batch * images, crops, sizes, device, dtype)
    visual = images * (1 if crops is None else 1 + crops[0] * crops[1]) * sizes.side**2
    embeds = _normal(device, dtype, batch, visual, sizes.width)
    layers = model.config.num_hidden_layers

    def prefill() -> float:
        with torch.no_grad():
            seconds = stopwatch(lambda: model(inputs_embeds=embeds, use_cache=True), device)
        return seconds * LAYERS / layers

    def selection(name: str) -> float:
        method = create_method(name, retention=retention)
        with torch.no_grad():
            # short on the CPU: the median of a few, beside one prefill
            each = [stopwatch(lambda: encoded.select(method), device) for _ in range(3)]
        return statistics.median(each)

    cases: dict[str, Callable[[], float]] = {"prefill": prefill}
    cases |= {name: functools.partial(selection, name) for name in names}
    times = interleaved(cases, rounds)
    return [
        {
            "method": name,
            "tokens": visual,
            "batch": batch,
            "selection": spread(times[name]),
            "prefill": spread(times["prefill"]),
            "ratio": ratio(times[name], times["prefill"]).__dict__,
        }
        for name in names
    ]


class Operations(TorchDispatchMode):
    """Counts operations that are no views, and values that are read one by one (`.item()`)."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.items = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.items += function is torch.ops.aten._local_scalar_dense.default
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def counted(call: Callable[[], Any]) -> tuple[int, int]:
    """Operations of a call, and values it reads one by one."""
    with Operations() as operations:
        call()
    return operations.count, operations.items


def official_style(sizes: Sizes, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """`recoverable` and `globalcom2` against their stand-ins; the signals are given to both."""
    encoded = Encoded.random(1, (2, 2), sizes, device, torch.float32)
    free, quarter = create_method("recoverable"), create_method("globalcom2", retention=0.25)
    single, crops = encoded.images(free), encoded.images(quarter)
    seen = single[0].signals

    def recoverable() -> Tensor:
        keys = seen["keys"]
        visual = visual_scores(seen["cls_query"], keys)
        text = text_scores(seen["patch_embedding"], seen["text_embedding"])
        tiles = zip(single[0].features, visual, text, keys[:, 1:], strict=True)
        return torch.cat([standins.recoverable(*tile) for tile in tiles])

    def globalcom2() -> Tensor:
        logits = crops[0].signals["cls_logits"]
        return standins.globalcom2(encoded.projected, logits, encoded.newline, (2, 2), 0.25)

    pairs: dict[str, dict[str, Callable[[], Any]]] = {
        "recoverable": {"ours": lambda: free.compress_all(single), "stand-in": recoverable},
        "globalcom2": {"ours": lambda: quarter.compress_all(crops), "stand-in": globalcom2},
    }
    rows = []
    for name, pair in pairs.items():
        with torch.no_grad():
            ours = pair["ours"]()[0]
            # the stand-in of a method for single tiles knows no newlines
            own = ours.is_patch.sum() if name == "recoverable" else len(ours)
            lengths = int(own), len(pair["stand-in"]())
            counts = {label: counted(call) for label, call in pair.items()}
            cases = {k: functools.partial(stopwatch, call, device) for k, call in pair.items()}
            times = interleaved(cases, rounds)
        rows.append(
            {
                "method": name,
                "tokens": 5 * sizes.side**2,
                "left": lengths,
                "operations and items": counts,
                "seconds": {label: spread(values) for label, values in times.items()},
                "ratio": ratio(times["stand-in"], times["ours"]).__dict__,
            }
        )
    return rows


# -- the command ---------------------------------------------------------------------------------


def milliseconds(values: Sequence[float]) -> str:
    """Median and quartiles of seconds."""
    middle, low, high = (1e3 * value for value in values)
    return f"{middle:,.1f} ({low:,.1f}-{high:,.1f})"


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a result, for the docs."""
    about = result["about"]
    lines = [
        f"Measured on {about['machine']}, {about['threads']} thread(s), {about['dtype']}, torch "
        f"{about['torch']}, load {about['load']:.1f} before the run; {about['layers']} of {LAYERS} "
        f"layers run and scaled, retention {about['retention']:.0%}, {about['rounds']} rounds, "
        "median (quartiles).",
        "",
        "| method | tokens | batch | selection, ms | prefill, ms | selection / prefill |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["selections"]:
        if "ratio" not in row:
            lines.append(f"| - | {row['tokens']:,} | {row['batch']} | - | - | {row['why']} |")
            continue
        share = "{median:.3%} ({low:.3%}-{high:.3%})".format(**row["ratio"])
        lines.append(
            f"| `{row['method']}` | {row['tokens']:,} | {row['batch']} | "
            f"{milliseconds(row['selection'])} | {milliseconds(row['prefill'])} | {share} |"
        )
    if result.get("official_style"):
        lines += [
            "",
            "| method | tokens | left | ours, ms | stand-in, ms | stand-in / ours "
            "| ours: operations, `.item()` | stand-in: operations, `.item()` |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in result["official_style"]:
            times, counts = row["seconds"], row["operations and items"]
            share = "{median:.1f} ({low:.1f}-{high:.1f})".format(**row["ratio"])
            lines.append(
                f"| `{row['method']}` | {row['tokens']:,} | {row['left'][0]} | "
                f"{milliseconds(times['ours'])} | {milliseconds(times['stand-in'])} | {share} | "
                + " | ".join("{:,}, {:,}".format(*pair) for pair in counts.values())
                + " |"
            )
    if result.get("operations"):
        lines += [
            "",
            "| operation | features | kernel, us | twin, us | compiled twin, us | "
            + " | ".join(f"{card} floor, us" for card in CARDS)
            + " |",
            "|---|---|" + "---:|" * (3 + len(CARDS)),
        ]
        for row in result["operations"]:
            found = [row["microseconds"].get(label) for label in CALLS]
            cells = ["-" if v is None else "{:.1f} ({:.1f}-{:.1f})".format(*v) for v in found]
            cells += [f"{value:.2f}" for value in row["floor"].values()]
            lines.append(f"| `{row['operation']}` | {row['dtype']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


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
            "machine": _machine(device),
            "threads": torch.get_num_threads(),
            "dtype": str(dtype)[6:],
            "torch": torch.__version__,
            "load": load,
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
        for name in OPERATIONS:
            result["correctness"] += [correctness(name, sizes, device, each) for each in dtypes]
            if on_gpu:
                times = operation_times(name, sizes, device, torch.float16, given.rounds)
                result["operations"].append(times)
    if "selection" in given.parts:
        model = language_model(sizes, layers, device, dtype)
        for tokens in given.tokens:
            for batch in given.batch:
                arguments = (tokens, batch, sizes, model, device, dtype, given.rounds)
                try:
                    rows = selections(given.methods, *arguments, given.retention)
                except torch.OutOfMemoryError:
                    rows = [{"tokens": tokens, "batch": batch, "why": "does not fit in memory"}]
                    torch.cuda.empty_cache()
                result["selections"] += rows
                print(f"{tokens} tokens, batch {batch}: done", file=sys.stderr)
    if "official" in given.parts:
        result["official_style"] = official_style(sizes, device, given.rounds)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, save; exits with 1 where an operation is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m vtc.kernels.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, help=f"run this many of {LAYERS}; 1 on the CPU")
    parser.add_argument("--methods", nargs="+", choices=methods(), default=methods())
    parser.add_argument("--tokens", nargs="+", type=int, choices=COUNTS, help="visual tokens")
    parser.add_argument("--batch", nargs="+", type=int)
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
    given.tokens = given.tokens or ([576, 2880, 14400] if on_gpu else [576, 2880])
    given.batch = given.batch or ([1, 2, 4, 8, 16, 32] if on_gpu else [1])
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
