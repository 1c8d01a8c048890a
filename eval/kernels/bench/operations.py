"""Single operations: each against its twin in float64, and its time on a GPU."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.eval.common.timing import interleaved, spread
from vtc.eval.kernels.bench.device import FLUSH, Replay, called
from vtc.eval.kernels.bench.sizes import Sizes, normal
from vtc.eval.kernels.floors import CARDS, WORK, Card
from vtc.kernels import (
    adaptive_pool,
    attention_received,
    bit_packing,
    cls_attention,
    cosine_topk,
    drop_alike,
    greedy_pick,
    lof,
    merge,
    neighbour_count,
    pixel_surprise,
    ragged_compact,
    row_attention,
    segmented_topk,
    suppress,
)

#: what is timed of an operation
CALLS = ("kernel", "twin", "compiled twin")


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


def _heads(sizes: Sizes, extra: int, device: Any, dtype: Any) -> Tensor:
    shape = (sizes.tiles, sizes.side**2 + extra, sizes.heads, sizes.head_width)
    return normal(device, dtype, *shape).transpose(1, 2)


def _scores(sizes: Sizes, device: Any) -> tuple[Tensor, Tensor]:
    scores = normal(device, torch.float32, sizes.tiles, sizes.side**2)
    return scores, torch.ones_like(scores, dtype=torch.bool)


def _cls(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    keys = _heads(sizes, 1, device, dtype)
    return keys[:, :, 0], keys, sizes.head_width**-0.5


def _received(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    heads = _heads(sizes, 0, device, dtype)
    return heads, heads.flip(2), sizes.head_width**-0.5


def _row(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    """The last row of a prompt of each tile, in the language model."""
    heads, prompt = 2 * sizes.heads, sizes.side**2
    keys = normal(device, dtype, sizes.tiles, prompt, heads, sizes.width // heads).transpose(1, 2)
    allowed = torch.ones(sizes.tiles, 1, prompt, dtype=torch.bool, device=device)
    return keys[:, :, -1:].flip(3), keys, keys.shape[-1] ** -0.5, allowed, True


def _topk(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    scores, valid = _scores(sizes, device)
    return scores, torch.full((sizes.tiles,), sizes.side**2 // 4, device=device), valid


def _cosines(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    keys = normal(device, dtype, sizes.tiles, sizes.side**2, sizes.vision)
    itself = torch.arange(min(32, sizes.side**2), device=device).expand(sizes.tiles, -1)
    return keys[:, : itself.shape[1]], keys, 32, *_scores(sizes, device), itself


def _picks(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    rows = normal(device, dtype, sizes.tiles, sizes.side**2, sizes.width)
    weight, valid = _scores(sizes, device)
    most = max(sizes.side**2 // 4, 1)
    count = torch.full((sizes.tiles,), most, device=device)
    return "mmr", rows, count, most, weight, valid


def _merged(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    rows = sizes.tiles * sizes.side**2
    values = normal(device, dtype, rows, sizes.vision)
    entry = torch.arange(rows, device=device)
    return values, entry // 4, entry, torch.ones(rows, device=device), math.ceil(rows / 4)


def _pooled(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    features = normal(device, dtype, sizes.tiles, sizes.side**2, sizes.vision)
    bins = max(sizes.side // 3, 1)
    return features, (sizes.side, sizes.side), (bins, bins), _scores(sizes, device)[1]


def _compacted(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    rows = sizes.tiles * sizes.side**2
    index = torch.arange(0, rows, 4, device=device)
    splits = torch.tensor([0, len(index)], device=device)
    return normal(device, dtype, rows, sizes.width), index, splits, len(index), True, 0


def _bits(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    return normal(device, torch.float32, sizes.tiles, sizes.side**2, 16) > 0, 16, torch.int64


def _dropped(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    patches, step = sizes.side**2, 8
    front = max(patches // 8, 1)  # of the fourth that stays, half by attention
    unit = normalize(normal(device, torch.float32, sizes.tiles, patches, sizes.vision), dim=-1)
    left = torch.arange(front, patches, device=device).expand(sizes.tiles, -1)
    size, wanted = ([n] * sizes.tiles for n in (patches - front, front))
    counts = torch.tensor([size, wanted], device=device)
    return unit @ unit.mT, left, *counts, drop_alike.rounds(size, wanted, step), step


def _suppressed(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    patches = sizes.side**2
    by = normal(device, torch.float32, sizes.tiles, patches, patches) > 1
    return by.tril(-1), _scores(sizes, device)[1]


def _predicted(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    pixels = normal(device, torch.float32, sizes.tiles, sizes.side**2, 588)
    pixels = (pixels[:, :, :1].sigmoid() * 4).round().expand_as(pixels) / 4  # flat colours
    return pixels.to(dtype).contiguous(), _scores(sizes, device)[1], (sizes.side, sizes.side), 0.1


OPERATIONS: dict[str, Operation] = {
    "cls_attention": Operation(
        cls_attention.cls_attention, cls_attention.cls_attention_torch, _cls
    ),
    "attention_received": Operation(
        attention_received.attention_received,
        attention_received.attention_received_torch,
        _received,
    ),
    "row_attention": Operation(
        row_attention.row_attention, row_attention.row_attention_torch, _row
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
            normal(device, dtype, sizes.tiles, sizes.side**2, sizes.vision),
            0.05,
            _scores(sizes, device)[1],
        ),
    ),
    "cosine_topk": Operation(cosine_topk.cosine_topk, cosine_topk.cosine_topk_torch, _cosines),
    "greedy_pick": Operation(
        greedy_pick.greedy_pick,
        # the arguments that a call may leave out
        lambda *given: greedy_pick.greedy_pick_torch(*given, None, 0.5, 1),
        _picks,
    ),
    "merge": Operation(merge.weighted_merge, merge.weighted_merge_torch, _merged),
    "adaptive_pool": Operation(
        adaptive_pool.adaptive_pool, adaptive_pool.adaptive_pool_torch, _pooled
    ),
    "ragged_compact": Operation(
        ragged_compact.ragged_compact, ragged_compact.ragged_compact_torch, _compacted
    ),
    "bit_packing": Operation(bit_packing.pack_bits, bit_packing.pack_bits_torch, _bits),
    "drop_alike": Operation(drop_alike.drop_alike, drop_alike.drop_alike_torch, _dropped),
    "suppress": Operation(suppress.suppress, suppress.suppress_torch, _suppressed),
    "pixel_surprise": Operation(
        pixel_surprise.pixel_surprise, pixel_surprise.pixel_surprise_torch, _predicted
    ),
}


def correctness(
    name: str, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """The operation against its twin on the same numbers in float64.

    Returns:
        `error`, the largest difference over the largest value of finite results, and `agree`, the
        share of equal whole numbers and of equal infinities; a rank may differ where values are closer
        than rounding.
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
        whole = ~b.isfinite() if b.is_floating_point() else torch.ones_like(b, dtype=torch.bool)
        if whole.any():
            agree = min(agree, float((a[whole] == b[whole]).double().mean()))
        if not whole.all():
            a, b = a[~whole].double(), b[~whole]
            off = (a - b).abs().max() / b.abs().max().clamp(min=1e-12)
            error = max(error, float(off.nan_to_num(torch.inf)))
    return {"operation": name, "dtype": str(dtype)[6:], "error": error, "agree": agree}


def is_right(row: Mapping[str, Any]) -> bool:
    """Whether a row of `correctness` is within rounding."""
    return row["error"] <= (1e-4 if row["dtype"] == "float32" else 1e-2) and row["agree"] >= 0.98


def operation_times(
    name: str,
    sizes: Sizes,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    ceiling: Card | None = None,
    compiling: bool = True,
) -> dict[str, Any]:
    """Microseconds of kernel, twin and compiled twin on a GPU: median and quartiles.

    Args:
        ceiling: what the card was measured to do.
        compiling: also the compiled twin.

    Returns:
        `microseconds` of a call, launch included, and `work`, of the same inside a CUDA graph, None for
        what does not go into one; `floor` of each card; `share`, the floor by `ceiling` over the work.
    """
    operation = OPERATIONS[name]
    needed = WORK[name](sizes.tiles)
    compiled = torch.compile(operation.twin, dynamic=False)
    calls = dict(zip(CALLS, (operation.call, operation.twin, compiled), strict=True))
    if not compiling:
        del calls["compiled twin"]
    # so many that the last has pushed the first out of the cache
    copies = min(max(FLUSH // (needed.read + needed.written), 1), 20)
    inputs = [operation.inputs(sizes, device, dtype) for _ in range(copies)]
    flush = torch.empty(FLUSH, dtype=torch.uint8, device=device)

    for label, call in list(calls.items()):
        try:
            for _ in range(3):
                call(*inputs[0])
        except Exception as error:
            if call is not compiled:
                raise
            print(f"{name}: torch.compile of the twin failed: {error}", file=sys.stderr)
            del calls[label]
    bound = {label: functools.partial(call, *inputs[0]) for label, call in calls.items()}
    times = interleaved(
        {label: functools.partial(called, call, flush) for label, call in bound.items()}, rounds
    )
    replays = {}
    for label, call in calls.items():
        try:
            replays[label] = Replay([functools.partial(call, *each) for each in inputs])
        except RuntimeError as error:
            print(f"{name}, {label}: not in a graph: {error}", file=sys.stderr)
    work = {label: spread(values) for label, values in interleaved(replays, rounds).items()}
    cards = CARDS if ceiling is None else {**CARDS, "measured": ceiling}
    floors = {card: 1e6 * needed.seconds(what) for card, what in cards.items()}
    return {
        "operation": name,
        "dtype": str(dtype)[6:],
        "tiles": sizes.tiles,
        "bytes": needed.read + needed.written,
        "flops": needed.flops,
        "bound": needed.bound(cards["H100" if ceiling is None else "measured"]),
        "microseconds": {label: spread(values) for label, values in times.items()},
        "work": {label: work.get(label) for label in calls},
        "floor": floors,
        "share": {label: floors.get("measured", math.nan) / work[label][0] for label in work},
    }
