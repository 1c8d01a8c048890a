"""Positions on three axes for the tokens that are left of an image.

vLLM works out positions before it encodes, when nobody knows which tokens a method will keep; it knows
how many. So a prompt first gets the positions of the whole one, less the dropped places at the end of
each image; every row of an image's features carries its row and column in extra columns, and when rows
are put into a step, the positions of exactly these are written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.errors import VTCError

#: columns behind an embedding: row high, row low, column high, column low, whether they are meant
COLUMNS = 5
#: bf16 holds whole numbers to 256 only
BASE = 128


def restored(ids: Sequence[int], gaps: Sequence[tuple[int, int, int]]) -> tuple[list[int], Tensor]:
    """A short prompt with the placeholders put back that were cut off.

    Args:
        ids: of the short prompt.
        gaps: `(offset, left, full)` of each pruned image in rising order: where its placeholders begin
            in the short prompt, how many there are and how many there were.

    Returns:
        Ids of the long prompt, and int64 `[L]`: the place in it of each token of the short one.
    """
    long: list[int] = []
    places: list[int] = []
    done = 0
    for offset, left, full in gaps:
        end = offset + left
        places += range(len(long), len(long) + end - done)
        long += ids[done:end]
        more = full - left
        long += [ids[end - 1]] * more
        done = end
    places += range(len(long), len(long) + len(ids) - done)
    long += ids[done:]
    return long, torch.tensor(places, dtype=torch.long)


def columns(row: Tensor, col: Tensor, like: Tensor) -> Tensor:
    """`[L, COLUMNS]` of rows and columns `[L]`, in the type of `like`."""
    parts = [row // BASE, row % BASE, col // BASE, col % BASE, torch.ones_like(row)]
    return torch.stack(parts, 1).to(like)


def blank(like: Tensor) -> Tensor:
    """`[L, COLUMNS]` for rows `[L, D]` whose positions are right already."""
    return like.new_zeros(len(like), COLUMNS)


def check_reach(length: int, images: Sequence[tuple[int, int]], known: int) -> None:
    """Raise `VTCError` where a prompt reaches positions that the model was not made for.

    Kept tokens have the places that they had, so an image takes as many positions as its longer side
    has tokens, however few are left. vLLM bounds the number of tokens alone.

    Args:
        length: tokens of the prompt.
        images: `(left, side)` of each image: its tokens in the prompt, and along its longer side.
        known: positions that the model was made for.
    """
    reach = length + sum(side - left for left, side in images)
    if reach > max(known, length):
        raise VTCError(
            f"image: {len(images)} images in {length} tokens take positions to {reach}, since kept "
            f"tokens stay at their places, and the model knows {known}; send fewer or smaller images"
        )


def check_table(length: int, known: int) -> None:
    """Raise `VTCError` where a model has fewer positions than a prompt may have tokens: an answer
    would get positions that the model cannot look up, or that are not its own.

    Args:
        length: tokens that a prompt and its answer have at most.
        known: positions that the model can look up.
    """
    if length > known:
        raise VTCError(
            f"max_model_len: got {length}, but the model has a table of {known} positions; give it "
            f"{known} or less, or set VTC_VLLM=0"
        )


def bounded(positions: Tensor, delta: int, known: int, length: int) -> tuple[Tensor, int]:
    """Positions and what the next one is ahead of the next place, within what a model can look up.

    Args:
        positions: int64 `[3, L]`.
        delta: what the next position is ahead of the next place.
        known: positions that the model can look up.
        length: tokens that a prompt and its answer have at most, no more than `known`.
    """
    return positions.clamp(max=known - 1), min(delta, known - length)


def recomputed(
    is_embed: Tensor, rows: Sequence[Tensor], positions: Tensor, computed: int
) -> tuple[list[Tensor], Tensor, int]:
    """Positions of the tokens whose features are put into a step.

    An image is one moment, so all its places have the same first coordinate, and the place of a token is
    that, and its row and column behind it. Doing it twice changes nothing.

    Args:
        is_embed: bool `[L]`, the places of the prompt that features are put into.
        rows: features of the step, each `[n, D + COLUMNS]`, in reading order.
        positions: int64 `[3, L]`.
        computed: places in front of the step.

    Returns:
        The features `[n, D]`, the positions, and what the next position is ahead of the next place.
    """
    features = [each[:, :-COLUMNS] for each in rows]
    out = positions.clone()
    if features:
        extra = torch.cat([each[:, -COLUMNS:] for each in rows]).to(positions.device).long()
        where = is_embed.to(positions.device)[computed:].nonzero().squeeze(1)[: len(extra)]
        where = where + computed
        start = positions[0, where]
        row, col = extra[:, 0] * BASE + extra[:, 1], extra[:, 2] * BASE + extra[:, 3]
        meant = extra[:, 4] == 1
        out[1, where] = torch.where(meant, start + row, positions[1, where])
        out[2, where] = torch.where(meant, start + col, positions[2, where])
    return features, out, int(out.max()) + 1 - out.shape[1]
