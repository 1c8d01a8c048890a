"""Shorten a batch of prompts: drop the placeholders of visual tokens that are gone.

Pure tensor code. Every text-side tensor (ids, mask, labels, token types, positions) of the short prompt
is one gather from the long one. The prompts' masks are read on the CPU, what the methods keep stays
where it is, so that nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.functional.ragged import join_indices, to_device
from vtc.kernels.ragged_compact import ragged_compact


@dataclass(frozen=True)
class Compaction:
    """How the short prompts read from the long ones.

    Attributes:
        slot: int64 `[B, S]`, index in the long row that each short place stands for (its token id,
            label and type).
        position: int64 `[B, S]`, index in the long row that gives its position; differs from `slot`
            only where a method reorders tokens.
        valid: bool `[B, S]`, False for padding.
        ragged: whether there is padding.
    """

    slot: Tensor
    position: Tensor
    valid: Tensor
    ragged: bool

    def to(self, device: torch.device) -> Compaction:
        """The same on another device."""
        slot, position, valid = (
            x.to(device, non_blocking=True) for x in (self.slot, self.position, self.valid)
        )
        return Compaction(slot, position, valid, self.ragged)

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
        placeholder: bool `[B, L]`, CPU.
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


def rows_of(runs: Sequence[Tensor], length: int) -> list[int]:
    """The row of the batch that each image belongs to.

    Args:
        runs: from `image_runs`.
        length: L.
    """
    return (_firsts(runs) // length).tolist()


def reading_order(runs: Sequence[Tensor]) -> list[int]:
    """The images as the prompts show them: row by row, left to right, whatever the modality.

    Args:
        runs: from `image_runs`.
    """
    return _firsts(runs).argsort().tolist() if runs else []


def build_compaction(
    real: Tensor, placeholder: Tensor, runs: Sequence[Tensor], anchors: Sequence[Tensor], left: bool
) -> Compaction:
    """Plan the short prompts, on the device of `anchors`.

    Args:
        real: bool `[B, L]`, CPU, False for padding of the long prompts.
        placeholder: bool `[B, L]`, CPU, the image placeholders.
        runs: from `image_runs`.
        anchors: for each image `[M]`, index into its run that gives each new token its position. The
            new tokens stand, in the order given, where the sorted anchors are, so that text between
            parts of an image (tile tags, time stamps) keeps its neighbours.
        left: pad ragged rows on the left.
    """
    batch, length = real.shape
    is_text = real & ~placeholder
    counts = is_text.sum(1)
    text = is_text.flatten().nonzero().squeeze(1)
    position = text
    if anchors:
        shown = reading_order(runs)
        runs, anchors = [runs[i] for i in shown], [anchors[i] for i in shown]
        taken = torch.tensor([len(anchor) for anchor in anchors])
        counts = counts.index_add(0, torch.tensor(rows_of(runs, length)), taken)
        text, places = to_device(text, anchors[0]), to_device(torch.cat(list(runs)), anchors[0])
        source = places[join_indices(anchors, [len(run) for run in runs])]
        position = torch.cat([text, source])
    slot, order = torch.sort(position, stable=True)
    if anchors:
        visual = order >= len(text)
        nth = (visual.cumsum(0) - 1).clamp(min=0)
        position = torch.where(visual, source[nth], slot)

    row_lengths = counts.tolist()
    splits = to_device(torch.nn.functional.pad(counts.cumsum(0), (1, 0)), slot)
    both = torch.stack([slot % length, position % length], 1)
    every = torch.arange(len(slot), device=slot.device)
    places, _, valid = ragged_compact(both, every, splits, max(row_lengths), left)
    return Compaction(places[..., 0], places[..., 1], valid, len(set(row_lengths)) > 1)


def _firsts(runs: Sequence[Tensor]) -> Tensor:
    """The first place of each run."""
    lengths = torch.tensor([len(run) for run in runs])
    return torch.cat(list(runs))[lengths.cumsum(0) - lengths]
