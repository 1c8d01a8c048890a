"""FastVID's counts: how many tokens each frame keeps, and how many its segment gathers in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.functional.budget import apportion


class Plan(NamedTuple):
    """Counts of S frames, int64 `[S]`.

    Attributes:
        segment: number of the segment that a frame is in.
        salient: tokens that stay by attention.
        anchors: tokens that others are merged into.
        merges: pairs of one of a frame's other tokens and an anchor frame of its segment.
    """

    segment: np.ndarray
    salient: np.ndarray
    anchors: np.ndarray
    merges: np.ndarray


def likeness_before(frames: Tensor, follows: Tensor) -> Tensor:
    """Cosine of each frame's vector to the one before, float32 `[S]`.

    Args:
        frames: `[S, P]`.
        follows: bool `[S]`, frames that have one; others get 0.
    """
    unit = normalize(frames.detach().float(), dim=-1)
    return (unit * unit.roll(1, 0)).sum(-1).masked_fill(~follows, 0)


def plan(
    begins: np.ndarray,
    kept: np.ndarray,
    available: Sequence[int],
    context: float,
    every: int,
    exact: bool,
) -> Plan:
    """Which frames of the segments have anchors, and how many tokens stay of each frame.

    Of a segment of m frames those with `(m - 1 - j) % every == 0` are anchor frames; they share what
    the frames set aside for context. With `exact`, remainders go to the first of them, and what they
    have no room for to salient tokens of the segment; otherwise both are lost, as officially.

    Args:
        begins: bool `[S]`, frames that a segment begins with.
        kept: int64 `[S]`, tokens for each frame.
        available: tokens that are there.
        context: share of `kept` for anchors, rounded down.
        every: see above.
    """
    there = np.asarray(available)
    first = np.flatnonzero(begins)
    count = np.diff(first, append=len(begins))
    segment = begins.cumsum() - 1
    place = np.arange(len(begins)) - first[segment]
    is_anchor = (count[segment] - 1 - place) % every == 0

    def table(values: np.ndarray) -> np.ndarray:  # a row a segment
        out = np.zeros((len(count), count.max()), dtype=np.int64)
        out[segment, place] = values
        return out

    aside = np.floor(kept * context).astype(np.int64)
    salient = kept - aside
    total, room, free = table(aside).sum(1), table(there - salient), table(is_anchor)
    free *= room
    if exact:
        anchors = _share(free > 0, free, np.minimum(total, free.sum(1)))
        left = room - anchors
        more = _share(left, left, total - anchors.sum(1))
        salient = salient + more[segment, place]
    else:
        anchors = np.minimum(total[:, None] // table(is_anchor).sum(1, keepdims=True), free)
    number = (anchors > 0).sum(1)
    return Plan(segment, salient, anchors[segment, place], (there - salient) * number[segment])


def _share(*parts: np.ndarray) -> np.ndarray:
    """`apportion`, of weights, capacities and totals."""
    return apportion(*map(torch.from_numpy, parts)).numpy()


def anchor_frames(anchors: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Int64 `[R, J]`: the frames with anchors of each row, -1 behind the last.

    Args:
        anchors: int64 `[S]`.
        row: int64 `[S]`, the row that each frame is in, ascending.
    """
    frame = np.flatnonzero(anchors > 0)
    count = np.bincount(row[frame], minlength=row[-1] + 1)
    nth = np.arange(len(frame)) - np.repeat(count.cumsum() - count, count)
    out = np.full((len(count), max(count.max(), 1)), -1)
    out[row[frame], nth] = frame
    return out


def nearest_anchors(
    tokens: Tensor, place: Tensor, rows: Tensor, anchor: Tensor, frames: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """The anchor of every anchor frame of its row that a token is most like, by cosine.

    An anchor belongs to itself; of equally like ones the first is taken.

    Args:
        tokens: `[S, N, C]`.
        place: int64 `[R, T]`, the tokens of each row as `frame * N + patch`.
        rows: `[R, T, C]`, these tokens.
        anchor: bool `[S, N]`.
        frames: int64 `[R, J]`, from `anchor_frames`.
        most: anchors of a frame, at most.

    Returns:
        int64 `[R, T, J]`, an anchor as `frame * N + patch`; bool `[R, J]`, frames that are there.
    """
    patches = anchor.shape[1]
    there, frame = frames >= 0, frames.clamp(min=0)
    patch = torch.arange(patches, device=anchor.device)
    listed = torch.where(anchor, patch, patches).sort(-1).values[:, :most]
    used = (listed < patches)[frame] & there[..., None]
    at = frame[..., None] * patches + listed.clamp(max=patches - 1)[frame]  # [R, J, most]
    centre = normalize(tokens.flatten(0, 1)[at.flatten(1)].float(), dim=-1)
    alike = normalize(rows.float(), dim=-1) @ centre.transpose(1, 2)
    alike = alike.unflatten(2, at.shape[1:]).masked_fill(~used[:, None], -torch.inf)
    best = at[:, None].expand_as(alike).gather(-1, alike.argmax(-1, keepdim=True)).squeeze(-1)
    mine = anchor.flatten()[place][..., None] & (place[..., None] // patches == frames[:, None])
    return torch.where(mine, place[..., None], best), there
