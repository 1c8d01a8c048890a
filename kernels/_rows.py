"""Reading rows of a matrix, as most kernels do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtc.kernels._dispatch import Kernel

if TYPE_CHECKING:
    import triton.language as tl


@Kernel
def load_rows(first, inside, column, width, WIDE: tl.constexpr):
    """`[R, C]`: numbers `column` of the rows that begin at the pointers `first`, as float32 if WIDE.

    0 behind the `width` of a row, and in rows that are not `inside`.
    """
    x = tl.load(
        first[:, None] + column[None, :],
        mask=inside[:, None] & (column[None, :] < width),
        other=0,
    )
    if WIDE:
        x = x.to(tl.float32)
    return x
