"""Top-k with another k for every row: which patches each tile keeps, and in which order.

Bytes: reads the scores once (and SN with a mask), writes 9 * SN. One launch, a row a program: the row
is sorted on the chip, by numbers that hold score and index together. Sorting, not memory, is the limit:
log2(N)**2 / 2 steps over N numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtc.kernels._dispatch import Kernel, next_power, register, use_triton
from vtc.kernels._ordering import LONGEST, float_rank

if TYPE_CHECKING:
    import triton.language as tl


def segmented_topk(scores: Tensor, k: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `k[s]` largest scores of every row; ties go to the lower index, on any device.

    Rows are padded to one length and masked, so that one sort serves all tiles. Counts above the
    number of valid entries are cut to it. Rows of more than 4096 entries go to the twin.

    Args:
        scores: float `[S, N]`, compared in float32.
        k: int64 `[S]`, entries wanted of each row, on any device.
        valid: bool `[S, N]`, entries that may be chosen; None for all.

    Returns:
        `order`, int64 `[S, N]`: every row sorted by descending score, invalid entries last; and
        `keep`, bool `[S, N]`: the entries chosen, at their place in `scores`.
    """
    if use_triton(scores) and scores.shape[-1] <= LONGEST:
        return torch.ops.vtc.segmented_topk(scores, k.to(scores.device), valid)
    return segmented_topk_torch(scores, k, valid)


def segmented_topk_torch(
    scores: Tensor, k: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The PyTorch twin: one stable sort, two with a mask."""
    scores = scores.float()
    if valid is None:
        order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
        limit = k.to(scores.device)
    else:
        masked = scores.masked_fill(~valid, -torch.inf)
        order = torch.sort(masked, dim=-1, descending=True, stable=True).indices
        # a valid score may be -inf itself: sorting once more by the mask keeps it in front
        usable = valid.gather(-1, order)
        order = order.gather(-1, torch.sort(~usable, dim=-1, stable=True).indices)
        limit = torch.minimum(k.to(scores.device), valid.sum(-1))
    rank = torch.arange(scores.shape[-1], device=scores.device)
    keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    keep.scatter_(-1, order, rank < limit[:, None])
    return order, keep


@Kernel
def _sort_rows(
    scores, valid, k, order, keep, size, scores_s, scores_n, valid_s, valid_n,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    s = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < size
    x = tl.load(scores + s * scores_s + i * scores_n, mask=inside, other=0.0).to(tl.float32)
    usable = inside
    if MASKED:
        usable &= tl.load(valid + s * valid_s + i * valid_n, mask=inside, other=0) != 0
    # ascending: entries that may be chosen by falling score, the masked, what is behind the row
    group = 2 - inside.to(tl.int64) - usable.to(tl.int64)
    falling = tl.where(usable, 0xFFFFFFFF - float_rank(x), 0)
    key = tl.sort((group << 48) | (falling << 16) | i.to(tl.int64))
    index = key & 0xFFFF
    limit = tl.minimum(tl.load(k + s), tl.sum(usable.to(tl.int64), 0))
    tl.store(order + s * size + i, index, mask=inside)
    tl.store(keep + s * size + index, i < limit, mask=inside)


def launch(scores: Tensor, k: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The Triton path: 1 launch."""
    rows, size = scores.shape
    order, keep = fake(scores, k, valid)
    block = next_power(max(size, 2))
    _sort_rows[(rows if size else 0,)](
        scores, valid, k.contiguous(), order, keep, size, *scores.stride(),
        *(valid.stride() if valid is not None else (0, 0)),
        MASKED=valid is not None, BLOCK=block, num_warps=max(min(block // 256, 8), 1),
    )  # fmt: skip
    return order, keep


def fake(scores: Tensor, k: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Results not yet filled."""
    return (
        scores.new_empty(scores.shape, dtype=torch.int64),
        scores.new_empty(scores.shape, dtype=torch.bool),
    )


register(
    "segmented_topk", "(Tensor scores, Tensor k, Tensor? valid) -> (Tensor, Tensor)", launch, fake
)
