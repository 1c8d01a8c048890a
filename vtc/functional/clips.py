"""How the tokens of a clip's frames resemble each other: the maths of `evs`, `dycoke` and `vidcom2`.

S frames (or tiles of images) of N patches each; where clips stand side by side, B of them with up to
M frames. Padding takes no part in any mean.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

#: what has nothing to be compared with counts as more new than anything that has: 1 - cos is at most 2
NEW = 3.0


def change(features: Tensor, before: Tensor, valid: Tensor) -> Tensor:
    """How new each patch is: `1 - cos` to the same place of an earlier frame, float32 `[S, N]`.

    Patches without one rank in front of all others, among themselves by how unlike their frame's mean
    they are.

    Args:
        features: `[S, N, D]`.
        before: int64 `[S]`, the frame that each one is compared with, -1 for none.
        valid: bool `[S, N]`.
    """
    x = features.detach().float().masked_fill(~valid[..., None], 0)
    scale = 1 / x.norm(dim=-1).clamp(min=1e-12)
    known = valid & valid[before] & (before >= 0)[:, None]
    mean = normalize(scale[:, None] @ x, dim=-1)
    alone = (x @ mean.transpose(1, 2)).squeeze(-1) * scale
    same = (x * x[before]).sum(-1) * scale * scale[before]
    return 1 - torch.where(known, same, alone - NEW)


def likeness(features: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """How ordinary each token is in its clip and in its frame (VidCom2, steps 1 and 2).

    Tokens are cut to the half of the channels that varies least over the clip and scaled to unit
    length; of the squared distance to a mean five Gaussians are added up, of variance 1/8 to 2.

    Args:
        features: `[B, M, N, C]`.
        valid: bool `[B, M, N]`.

    Returns:
        Float32 `[B, M, N]`: likeness to the clip's mean, and to the frame's; both from 0 to 5.
    """
    x = features.detach().float().masked_fill(~valid[..., None], 0)
    size = valid.sum(-1, keepdim=True).float()
    all_of, each = size.sum(1, keepdim=True), size.clamp(min=1)
    middle = x.sum((1, 2), keepdim=True) / all_of[..., None]
    weight = (valid / all_of).flatten(1)[:, None]
    variance = (weight @ (x - middle).square_().flatten(1, 2)).squeeze(1)
    low = torch.sort(variance, stable=True).indices[:, : max(x.shape[-1] // 2, 1)]
    x = normalize(x.gather(-1, low[:, None, None].expand(*x.shape[:-1], -1)), dim=-1)
    total = x.sum(2, keepdim=True)
    of_clip = total.sum(1, keepdim=True) / all_of[..., None]
    return _gaussians(x, of_clip), _gaussians(x, total / each[..., None])


def frame_budgets(likeness: Tensor, valid: Tensor, base: Tensor) -> Tensor:
    """Tokens of each frame, more where it is unlike the clip; int64 `[B, M]` (VidCom2, step 3).

    `round(n * min(base * (1 + p - mean(p)), 1))` of a frame's n tokens, half to even, at least 1, with
    p the softmax over the frames of their mean unlikeness, at temperature 0.01.

    Args:
        likeness: `[B, M, N]` to the clip's mean.
        valid: bool `[B, M, N]`.
        base: `[B]`, share of tokens to keep.
    """
    size = valid.sum(-1)
    there = size > 0
    score = -_mean(likeness, valid, -1).squeeze(-1).masked_fill(~there, torch.inf)
    p = torch.softmax((score - score.amax(-1, keepdim=True)) / 0.01, -1)
    share = base[:, None] * (1 + p - _mean(p, there, -1))
    return torch.minimum((size * share.clamp(max=1)).round().long().clamp(min=1), size)


def _mean(values: Tensor, real: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """The mean over some dimensions, kept, of what is `real`."""
    count = real.sum(dims, keepdim=True).clamp(min=1)
    return values.masked_fill(~real, 0).sum(dims, keepdim=True) / count


def _gaussians(unit: Tensor, mean: Tensor) -> Tensor:
    """`sum over k from -3 to 1 of exp(-|x - mean|^2 / 2^(k+1))` of unit vectors, or zeros."""
    length = (unit.square().sum(-1) > 0.5) + mean.square().sum(-1)
    distance = length - 2 * (unit * mean).sum(-1)
    width = 2.0 ** torch.arange(-2, 3, device=unit.device)
    return torch.exp(-distance[..., None] / width).sum(-1)
