"""Times on a GPU: of a call as a caller sees it, of its work alone, and what the card can do at most."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vtc.eval.kernels.floors import Card

#: larger than any L2 cache
FLUSH = 256 << 20


def called(call: Callable[[], Any], flush: torch.Tensor) -> float:
    """Microseconds of one call behind a flushed cache, the time to launch included."""
    begin, end = _events()
    flush.zero_()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(flush.device)
    return begin.elapsed_time(end) * 1e3


class Replay:
    """Calls caught in a CUDA graph, so that no time passes between launches.

    Args:
        calls: the same work on different inputs, together larger than the cache, so that none finds its
            own there.

    Raises:
        RuntimeError: a call waits for the device or copies to it.
    """

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        for call in calls:
            call()
        torch.cuda.synchronize()
        self.graph, self.count = torch.cuda.CUDAGraph(), len(calls)
        with torch.cuda.graph(self.graph):
            self.held = [call() for call in calls]

    def __call__(self) -> float:
        """Microseconds of one call."""
        begin, end = _events()
        begin.record()
        self.graph.replay()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) * 1e3 / self.count


def ceilings(device: torch.device, size: int = 8192, rounds: int = 10) -> Card:
    """What the card does at most: a copy, counting bytes read and written, and matrix products.

    Args:
        size: of the square matrices; `16 * size**2` bytes are copied.
    """
    source = torch.randint(0, 255, (16 * size**2,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def seconds(call: Callable[[], Any]) -> float:
        flush = torch.empty(1, dtype=torch.uint8, device=device)
        return statistics.median([called(call, flush) for _ in range(rounds + 3)][3:]) / 1e6

    def flops(dtype: torch.dtype) -> float:
        a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
        out = torch.empty_like(a)
        return 2 * size**3 / seconds(lambda: torch.mm(a, b, out=out))

    bandwidth = 2 * source.numel() / seconds(lambda: target.copy_(source))
    return Card(bandwidth, flops(torch.float16), flops(torch.float32))


def _events() -> tuple[Any, Any]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
