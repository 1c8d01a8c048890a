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

from vtc.eval.timing import interleaved, spread
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
)
from vtc.kernels.bench.sizes import Sizes, normal
from vtc.kernels.floors import CARDS, WORK

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
    shape = (5, sizes.side**2 + extra, sizes.heads, sizes.head_width)
    return normal(device, dtype, *shape).transpose(1, 2)


def _scores(sizes: Sizes, device: Any) -> tuple[Tensor, Tensor]:
    scores = normal(device, torch.float32, 5, sizes.side**2)
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
    keys = normal(device, dtype, 5, sizes.side**2, sizes.vision)
    itself = torch.arange(min(32, sizes.side), device=device).expand(5, -1)
    return keys[:, : itself.shape[1]], keys, 32, *_scores(sizes, device), itself


def _merged(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    rows = 5 * sizes.side**2
    values = normal(device, dtype, rows, sizes.vision)
    entry = torch.arange(rows, device=device)
    return values, entry // 4, entry, torch.ones(rows, device=device), math.ceil(rows / 4)


def _pooled(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    features = normal(device, dtype, 5, sizes.side**2, sizes.vision)
    bins = max(sizes.side // 3, 1)
    return features, (sizes.side, sizes.side), (bins, bins), _scores(sizes, device)[1]


def _compacted(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    rows = 5 * sizes.side**2
    index = torch.arange(0, rows, 4, device=device)
    splits = torch.tensor([0, len(index)], device=device)
    return normal(device, dtype, rows, sizes.width), index, splits, len(index), True, 0


def _bits(sizes: Sizes, device: Any, dtype: Any) -> tuple[Any, ...]:
    return normal(device, torch.float32, 32, sizes.side**2, 16) > 0, 16, torch.int64


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
            normal(device, dtype, 5, sizes.side**2, sizes.vision),
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
