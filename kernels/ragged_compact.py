"""Rows of different length out of one list, side by side in a padded batch.

Bytes: reads K rows of the values and writes B * W, each once; with them 8 * K + 9 * B * W for indices
and mask. That is the floor: gather, padding, positions and mask are one launch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.kernels._dispatch import Kernel, next_power, register, use_triton

if TYPE_CHECKING:
    import triton.language as tl


def ragged_compact(
    values: Tensor, index: Tensor, splits: Tensor, width: int, left: bool = False, fill: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Gather what is kept of a batch into rows of one length.

    Args:
        values: `[S, ...]`, all rows of the batch one behind the other, any dtype.
        index: int64 `[K]`, the entries of `values` that are kept, batch row by batch row, 0 to S - 1;
            not checked, which would wait for the device.
        splits: int64 `[B + 1]`, where each batch row begins in `index`; the last is K.
        width: W, at least the longest row; what is behind it is cut off.
        left: pad on the left.
        fill: value of the padding.

    Returns:
        `padded`, `[B, W, ...]`; `position`, int64 `[B, W]`, the entry of `values` at each place, 0 in
        the padding; `mask`, bool `[B, W]`, False for padding. Gradients flow to `values`.
    """
    if use_triton(values):
        rows = values.reshape(values.shape[0], values.shape[1:].numel())
        compact = torch.ops.vtc.ragged_compact
        padded, position, mask = compact(rows, index, splits, width, left, fill)
        return padded.view(len(splits) - 1, width, *values.shape[1:]), position, mask
    return ragged_compact_torch(values, index, splits, width, left, fill)


def ragged_compact_torch(
    values: Tensor, index: Tensor, splits: Tensor, width: int, left: bool = False, fill: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The PyTorch twin."""
    count = splits.diff()[:, None]
    nth = torch.arange(width, device=index.device) - (width - count if left else 0)
    mask = (nth >= 0) & (nth < count)
    if not len(index):
        nothing = values.new_full((*mask.shape, *values.shape[1:]), fill)
        return nothing, torch.zeros_like(nth.expand_as(mask)), mask
    position = index[(splits[:-1, None] + nth).clamp(0, len(index) - 1)].masked_fill(~mask, 0)
    spread = mask.reshape(*mask.shape, *[1] * (values.dim() - 1))
    padded = values[position]
    return torch.where(spread, padded, torch.full_like(padded, fill)), position, mask


@Kernel
def _place_rows(
    values, index, splits, padded, position, mask, width, channels, fill, values_s,
    LEFT: tl.constexpr, WHOLE: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.load(splits + b)
    count = tl.load(splits + b + 1) - first
    nth = place.to(tl.int64)
    if LEFT:
        nth -= width - count
    real = (nth >= 0) & (nth < count) & (place < width)
    row = tl.load(index + first + nth, mask=real, other=0)
    inside = (place[:, None] < width) & (c[None, :] < channels)
    x = tl.load(values + row[:, None] * values_s + c[None, :], mask=real[:, None] & inside, other=0)
    pad = tl.full([BLOCK_W, BLOCK_C], fill, tl.int64 if WHOLE else tl.float32)
    x = tl.where(real[:, None], x, pad.to(x.dtype))
    out = b * width + place
    tl.store(padded + out[:, None] * channels + c[None, :], x, mask=inside)
    if tl.program_id(2) == 0:
        tl.store(position + out, row, mask=place < width)
        tl.store(mask + out, real, mask=place < width)


def launch(
    values: Tensor, index: Tensor, splits: Tensor, width: int, left: bool, fill: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The Triton path: 1 launch."""
    channels = values.shape[1]
    values = values if values.stride(-1) == 1 else values.contiguous()
    padded, position, mask = fake(values, index, splits, width, left, fill)
    block = min(next_power(channels), 512)
    # few places of wide rows, many of narrow ones, so that a program moves some 4096 numbers
    block_w = min(max(4096 // block, 8), 512)
    _place_rows[(len(splits) - 1, -(-width // block_w), -(-channels // block))](
        values, index.contiguous(), splits.contiguous(), padded, position, mask,
        width, channels, fill, values.stride(0),
        LEFT=left, WHOLE=not values.is_floating_point(), BLOCK_W=block_w, BLOCK_C=block, num_warps=4,
    )  # fmt: skip
    return padded, position, mask


def fake(
    values: Tensor, index: Tensor, splits: Tensor, width: int, left: bool, fill: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Results not yet filled."""
    shape = splits.shape[0] - 1, width
    return (
        values.new_empty(*shape, values.shape[1]),
        index.new_empty(shape),
        index.new_empty(shape, dtype=torch.bool),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.size = inputs[0].shape[0]
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    position, mask = ctx.saved_tensors
    found = gradient.masked_fill(~mask[..., None], 0).flatten(0, 1)
    out = gradient.new_zeros(ctx.size, gradient.shape[2])
    return out.index_add(0, position.flatten(), found), None, None, None, None, None


register(
    "ragged_compact",
    "(Tensor values, Tensor index, Tensor splits, SymInt width, bool left, int fill)"
    " -> (Tensor, Tensor, Tensor)",
    launch,
    fake,
    gradient=(_setup, _backward),
)
