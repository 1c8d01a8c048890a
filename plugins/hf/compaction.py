"""Shorten a batch of prompts: drop the placeholders of visual tokens that are gone.

Pure tensor code. Every text-side tensor (ids, mask, labels, token types, positions) of the short prompt
is one gather from the long one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.errors import VTCError


@dataclass(frozen=True)
class Compaction:
    """How the short prompts read from the long ones.

    Attributes:
        slot: int64 `[B, S]`, index in the long row that each short place stands for (its token id,
            label and type).
        position: int64 `[B, S]`, index in the long row that gives its position; differs from `slot`
            only where a method reorders tokens.
        valid: bool `[B, S]`, False for padding.
    """

    slot: Tensor
    position: Tensor
    valid: Tensor

    def gather(self, values: Tensor, fill: float = 0) -> Tensor:
        """`values [B, L, ...]` at the short places, `fill` in the padding."""
        index = self.slot.reshape(*self.slot.shape, *[1] * (values.dim() - 2))
        out = values.gather(1, index.expand(*self.slot.shape, *values.shape[2:]))
        valid = self.valid.reshape(*self.valid.shape, *[1] * (values.dim() - 2))
        return torch.where(valid, out, torch.full_like(out, fill))

    def positions(self, values: Tensor) -> Tensor:
        """`values [B, L]` read at the places that give the positions, 0 in the padding."""
        return values.gather(1, self.position).masked_fill(~self.valid, 0)


def image_runs(placeholder: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Flat indices `b * L + i` of each image's placeholders, in reading order.

    Args:
        placeholder: bool `[B, L]`.
        lengths: uncompressed visual tokens of each image.

    Raises:
        VTCError: the prompt has another number of placeholders than the images have tokens.
    """
    places = placeholder.flatten().nonzero().squeeze(1)
    if places.numel() != sum(lengths):
        raise VTCError(
            f"input_ids: the prompt has {places.numel()} image placeholders, but the "
            f"{len(lengths)} image(s) have {sum(lengths)} visual tokens"
        )
    return list(torch.split(places, list(lengths)))


def build_compaction(
    real: Tensor, placeholder: Tensor, runs: Sequence[Tensor], anchors: Sequence[Tensor], left: bool
) -> Compaction:
    """Plan the short prompts.

    Args:
        real: bool `[B, L]`, False for padding of the long prompts.
        placeholder: bool `[B, L]`, the image placeholders.
        runs: from `image_runs`.
        anchors: for each image `[M]`, index into its run that gives each new token its position. The
            new tokens stand, in the order given, where the sorted anchors are, so that text between
            parts of an image (tile tags, time stamps) keeps its neighbours.
        left: pad ragged rows on the left.
    """
    batch, length = real.shape
    text = (real & ~placeholder).flatten().nonzero().squeeze(1)
    source = [run[anchor.to(run.device)] for run, anchor in zip(runs, anchors, strict=True)]
    slot = torch.cat([text, *(s.sort().values for s in source)])
    position = torch.cat([text, *source])
    order = torch.argsort(slot, stable=True)
    slot, position = slot[order], position[order]

    row = slot // length
    counts = torch.bincount(row, minlength=batch)
    width = int(counts.max())
    starts = counts.cumsum(0) - counts
    column = torch.arange(slot.numel(), device=slot.device) - starts[row]
    if left:
        column = column + width - counts[row]
    target = row * width + column

    def place(values: Tensor) -> Tensor:
        return values.new_zeros(batch * width).index_copy_(0, target, values).view(batch, width)

    valid = torch.zeros(batch * width, dtype=torch.bool, device=slot.device)
    valid[target] = True
    return Compaction(place(slot % length), place(position % length), valid.view(batch, width))
