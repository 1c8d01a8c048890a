"""Floats as whole numbers of the same order, so that a score and its index sort as one number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtc.kernels._dispatch import Kernel

if TYPE_CHECKING:
    import triton.language as tl

#: longest row that is sorted in one program; its indices fit into the 16 bits that keys leave them
LONGEST = 4096


@Kernel
def float_rank(x):
    """int64 in [0, 2**32), larger for larger float32 x; 0.0 and -0.0 are equal, NaN is largest."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    bits = tl.where(x != x, 0x7FFFFFFF, bits)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) + 2147483648


@Kernel
def rank_float(rank):
    """The float32 of a rank, the inverse of `float_rank`."""
    bits = (rank - 2147483648).to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)
