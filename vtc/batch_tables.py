"""`BatchTables`: the index tables of several images behind each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vtc.packing import Geometry, tables


@dataclass(frozen=True, eq=False)
class BatchTables:
    """Geometry of B images: S tiles of N patches, L packed tokens, images behind each other.

    Attributes:
        image: int64 `[S]`, the image of each tile.
        nth: int64 `[S]`, its number in that image.
        slot: int64 `[B, most]`, the tiles of each image, padded with its first.
        here: bool `[B, most]`, False for that padding.
        valid: bool `[S, N]`, patches that are not padding.
        available: int64 `[S]`, how many of them a tile has.
        packed: int64 `[S, N]`, place of each patch among all packed tokens, -1 for padding.
        origin: int64 `[4, L]`, of each packed token: `tile * N + patch` in the batch, its tile and
            patch in the image (all -1 for separators), its place in the image's packed sequence.
        separators: int64, places of the separators among all packed tokens.
        start: int64 `[B]`, place of each image's first packed token.
        first: int64 `[B]`, each image's first tile.
    """

    image: Tensor
    nth: Tensor
    slot: Tensor
    here: Tensor
    valid: Tensor
    available: Tensor
    packed: Tensor
    origin: Tensor
    separators: Tensor
    start: Tensor
    first: Tensor


@lru_cache(maxsize=16)
def batch_tables(shapes: tuple[Geometry, ...], device: torch.device) -> BatchTables:
    """The tables of images of these shapes on `device`; kept, since calls repeat them."""
    with tables():
        tiles = torch.tensor([shape.tiles for shape in shapes])
        lengths = torch.tensor([len(shape.source) for shape in shapes])
        patches = shapes[0].valid.shape[1]
        first, start = tiles.cumsum(0) - tiles, lengths.cumsum(0) - lengths
        image = torch.arange(len(shapes)).repeat_interleave(tiles)
        nth = torch.arange(len(image)) - first[image]
        column = torch.arange(int(tiles.max()))
        here = column < tiles[:, None]
        of_token = torch.arange(len(shapes)).repeat_interleave(lengths)
        source = torch.cat([shape.source for shape in shapes])
        packed = torch.cat([shape.packed for shape in shapes])
        valid = packed >= 0
        origin = torch.stack(
            [
                torch.where(source < 0, -1, source + first[of_token] * patches),
                torch.where(source < 0, -1, source // patches),
                torch.where(source < 0, -1, source % patches),
                torch.arange(len(source)) - start[of_token],
            ]
        )
        parts = (
            image,
            nth,
            first[:, None] + column * here,
            here,
            valid,
            valid.sum(1),
            torch.where(valid, packed + start[image][:, None], -1),
            origin,
            (source < 0).nonzero().squeeze(1),
            start,
            first,
        )
        return BatchTables(*(part.to(device, non_blocking=True) for part in parts))
