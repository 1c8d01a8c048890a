"""The products of rows with each other, without doing each of them twice."""

from __future__ import annotations

from torch import Tensor

from vtc.kernels._dispatch import opaque

#: rows that are multiplied at once; fewer are one product
BLOCK = 512


def gram(rows: Tensor) -> Tensor:
    """`rows @ rows.mT` of `[B, N, D]`: `[B, N, N]`.

    On the CPU what lies above the diagonal is copied below it, block by block: of many rows that is
    little more than half of the work. On a device, and where gradients are asked for, it is one product.
    """
    if rows.device.type != "cpu" or rows.requires_grad:
        return rows @ rows.mT
    return gram_torch(rows)


def _blocks(rows: Tensor) -> Tensor:
    size = rows.shape[1]
    if size <= BLOCK:
        return rows @ rows.mT
    out = rows.new_empty(len(rows), size, size)
    for start in range(0, size, BLOCK):
        end = start + BLOCK
        out[:, start:end, start:] = rows[:, start:end] @ rows[:, start:].mT
        out[:, end:, start:end] = out[:, start:end, end:].mT
    return out


def _fake(rows: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], rows.shape[1], rows.shape[1])


gram_torch = opaque("gram_torch", "(Tensor rows) -> Tensor", _blocks, _fake)
