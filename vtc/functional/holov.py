"""The maths of HoloV: runs of the raster sequence share the tokens.

Source: "Don't Just Chase 'Highlighted Tokens' in MLLMs" (arXiv 2510.02912), from its description and
behaviour. R runs of at most m tokens, padded to one length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.functional.budget import apportion

#: what attention is scaled by before the variance is added to it, and what keeps quotients finite
SCALE, TINY = 1000.0, 1e-6


def cut(size: int, runs: int) -> list[tuple[int, int]]:
    """Start and length of `runs` runs of `size` tokens; the first are one longer where it does not
    come out even."""
    each, over = divmod(size, runs)
    return [(run * each + min(run, over), each + (run < over)) for run in range(runs)]


def run_scores(
    features: Tensor, attention: Tensor, real: Tensor, alpha: float, together: int = 1
) -> Tensor:
    """Float32 `[R]`: the mean of a run's attention and of the variance of its tokens' likeness.

    Args:
        features: `[R, m, D]`.
        attention: `[R, m]`.
        real: bool `[R, m]`, tokens; the others pad.
        alpha: weight of the variance, once it is scaled to the attention.
        together: consecutive runs that share the factor which scales the variance. With 1 it cancels
            the variance, and a run of one token has its bare attention, as published.
    """
    x, attention = features.float(), attention.float().masked_fill(~real, 0)
    unit = x / (x.norm(dim=-1, keepdim=True) + TINY)
    pairs = real[:, :, None] & real[:, None]
    others = pairs & ~torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    alike = (unit @ unit.mT).masked_fill(~others, 0)
    size = real.sum(1)
    fellows = (size - 1).clamp(min=1)[:, None]
    mean = alike.sum(-1) / fellows
    # the zero of a token with itself is among the terms, as published
    spread = (alike - mean[..., None]).masked_fill(~pairs, 0).square().sum(-1) / fellows
    sums = torch.stack([SCALE * attention.sum(1), spread.sum(1), size])
    a, v, n = sums.unflatten(1, (-1, together)).sum(2).repeat_interleave(together, 1)
    n = n.clamp(min=1)
    factor = (a / n) / (v / n + TINY)
    score = (sums[0] + alpha * factor * sums[1]) / size.clamp(min=1)
    return torch.where(size == 1, attention.sum(1), score) if together == 1 else score


def quotas(
    scores: Tensor, capacity: Sequence[Sequence[int]], totals: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Tokens of each run of each image: as published, and so that every run has room for them.

    Shares are rounded down, and what is left goes one each to the largest. What a run has no room for
    goes to the others by their shares.

    Args:
        scores: CPU `[B, R]`, not negative.
        capacity: tokens of each run, `[B, R]`; 0 for runs that pad.
        totals: of each image.

    Returns:
        int64 `[B, R]` twice, CPU.
    """
    room, total = torch.tensor(capacity), torch.tensor(totals)[:, None]
    score = torch.nan_to_num(scores.double()).masked_fill(room == 0, 0)
    score = torch.where(score.sum(1, keepdim=True) > 0, score, room.double())
    share = score / (score.sum(1, keepdim=True) + TINY)
    quota = torch.floor(share * total).long()
    rank = torch.sort(share, dim=1, descending=True, stable=True).indices.argsort(1)
    quota += rank < total - quota.sum(1, keepdim=True)
    most = torch.minimum(quota, room)
    left = room - most
    excess = total.squeeze(1) - most.sum(1)
    return quota, most + apportion(score.masked_fill(left == 0, 0), left, excess)
