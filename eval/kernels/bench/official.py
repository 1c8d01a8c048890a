"""Methods with official code against stand-ins written in its style."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vtc.eval.common.timing import interleaved, ratio, spread, stopwatch
from vtc.eval.kernels.bench import standins
from vtc.eval.kernels.bench.selection import Encoded
from vtc.eval.kernels.bench.sizes import Sizes
from vtc.functional.recoverable import text_scores, visual_scores
from vtc.registry import create_method


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
