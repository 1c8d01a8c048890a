"""Weighted sums of rows: how merged tokens are made of their sources.

Bytes: reads K rows of the values and writes M, each once: (K + M) * C elements, which is the floor; the
entries add 20 * K. The entries are brought in the order of the outputs first (a sort of K whole
numbers), so that each output is summed by one program: no atomics, the same bits every time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.kernels._dispatch import Kernel, opaque, register, use_triton, widened
from vtc.kernels._rows import load_rows

if TYPE_CHECKING:
    import triton.language as tl

#: numbers that the twin on the CPU weights at once
BLOCK = 1 << 22


def weighted_merge(
    values: Tensor, output: Tensor, source: Tensor, weight: Tensor, num_outputs: int
) -> Tensor:
    """`out[output[e]] += weight[e] * values[source[e]]` over all entries e.

    Args:
        values: `[S, ...]`; sums run in float32 (float64 stays).
        output: int64 `[K]`, row of the result, 0 to M - 1. Indices are not checked, which would wait
            for the device: one out of range is an error of the caller.
        source: int64 `[K]`, row of `values`, 0 to S - 1, not checked either.
        weight: float `[K]`.
        num_outputs: M; a row without entries is zero.

    Returns:
        `[M, ...]` in the dtype of `values` (float32 for whole numbers). Gradients flow to `values` and
        `weight`.

    Raises:
        VTCError: `output`, `source` and `weight` differ in length.
    """
    if not output.shape == source.shape == weight.shape:
        raise VTCError(
            f"output, source, weight: got shapes {tuple(output.shape)}, {tuple(source.shape)} and "
            f"{tuple(weight.shape)}, which must be the same"
        )
    if use_triton(values):
        rows = values.reshape(values.shape[0], values.shape[1:].numel())
        rows = rows if values.is_floating_point() else rows.float()
        merged = torch.ops.vtc.weighted_merge(rows, output, source, weight, num_outputs)
        return merged.view(num_outputs, *values.shape[1:])
    return weighted_merge_torch(values, output, source, weight, num_outputs)


def weighted_merge_torch(
    values: Tensor, output: Tensor, source: Tensor, weight: Tensor, num_outputs: int
) -> Tensor:
    """The PyTorch twin."""
    learns = torch.is_grad_enabled() and (values.requires_grad or weight.requires_grad)
    if values.device.type == "cpu" and not learns:
        width = values.shape[1:].numel()
        if len(source) * width > BLOCK:  # the same sums, without as many rows as there are entries
            return _blocks(values, output, source, weight, num_outputs)
    scaled = widened(values[source])
    scaled = scaled * weight.to(scaled.dtype).reshape(-1, *[1] * (values.dim() - 1))
    out = scaled.new_zeros(num_outputs, *values.shape[1:]).index_add(0, output, scaled)
    return out.to(values.dtype) if values.is_floating_point() else out


def _in_blocks(
    values: Tensor, output: Tensor, source: Tensor, weight: Tensor, num_outputs: int
) -> Tensor:
    """The twin, some entries at a time; sums run in the same order."""
    rows = values.reshape(len(values), values.shape[1:].numel())
    out = widened(rows[:0]).new_zeros(num_outputs, rows.shape[1])
    step = max(BLOCK // max(rows.shape[1], 1), 1)
    for some in zip(output.split(step), source.split(step), weight.split(step), strict=True):
        scaled = widened(rows[some[1]])
        out.index_add_(0, some[0], scaled * some[2].to(scaled.dtype)[:, None])
    out = out.to(values.dtype) if values.is_floating_point() else out
    return out.view(num_outputs, *values.shape[1:])


def _fake_blocks(
    values: Tensor, output: Tensor, source: Tensor, weight: Tensor, num_outputs: int
) -> Tensor:
    dtype = values.dtype if values.is_floating_point() else torch.float32
    return values.new_empty(num_outputs, *values.shape[1:], dtype=dtype)


_blocks = opaque(
    "weighted_merge_blocks",
    "(Tensor values, Tensor output, Tensor source, Tensor weight, int num_outputs) -> Tensor",
    _in_blocks,
    _fake_blocks,
)


@Kernel
def _merge_rows(
    values, source, weight, order, first, out, width, values_s,
    BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One output row: its entries, BLOCK_E at a time."""
    m = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    last = tl.load(first + m + 1)
    for start in range(tl.load(first + m), last, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        entry = tl.load(order + e, mask=e < last, other=0)
        row = tl.load(source + entry, mask=e < last, other=0)
        share = tl.load(weight + entry, mask=e < last, other=0.0).to(tl.float32)
        x = load_rows(values + row * values_s, e < last, c, width, True)
        total += tl.sum(x * share[:, None], 0)
    tl.store(out + m * width + c, total, mask=c < width)


def launch(
    values: Tensor, output: Tensor, source: Tensor, weight: Tensor, num_outputs: int
) -> Tensor:
    """The Triton path: a stable sort of the entries, where each output begins, 1 launch."""
    values = values if values.stride(-1) == 1 else values.contiguous()
    out = fake(values, output, source, weight, num_outputs)
    ordered, order = output.sort(stable=True)
    every = torch.arange(num_outputs + 1, device=output.device)
    first = torch.searchsorted(ordered, every)
    block = 256
    _merge_rows[(num_outputs, -(-values.shape[1] // block))](
        values, source.contiguous(), weight.contiguous(), order, first, out,
        values.shape[1], values.stride(0), BLOCK_E=16, BLOCK_C=block, num_warps=4,
    )  # fmt: skip
    return out


def fake(
    values: Tensor, output: Tensor, source: Tensor, weight: Tensor, num_outputs: int
) -> Tensor:
    """The result not yet filled."""
    return values.new_empty(num_outputs, values.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """To the values: the same merge with outputs and sources exchanged."""
    values, output, source, weight = ctx.saved_tensors
    of_values = of_weight = None
    if ctx.needs_input_grad[0]:
        merge = torch.ops.vtc.weighted_merge
        of_values = merge(gradient, source, output, weight, values.shape[0])
    if ctx.needs_input_grad[3]:
        of_weight = (values[source].float() * gradient[output].float()).sum(-1).to(weight.dtype)
    return of_values, None, None, of_weight, None


register(
    "weighted_merge",
    "(Tensor values, Tensor output, Tensor source, Tensor weight, SymInt num_outputs) -> Tensor",
    launch,
    fake,
    gradient=(_setup, _backward),
)
