"""`Shown`: what a prompt shows, column by column, as the language model is given it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vtc.report import ImageReport, Report


class Image(NamedTuple):
    """An image or clip of a prompt.

    Attributes:
        row: of the batch.
        number: within its row.
        tokens: what stands for it in front of any cut.
    """

    row: int
    number: int
    tokens: int


@dataclass(frozen=True)
class Shown:
    """A prompt behind the stage at the boundary.

    Attributes:
        image: int64 `[B, L]`, the number of the image within its row, -1 for text and padding.
        place: int64 `[B, L, 3]`, tile, row and column of a token in its image, -1 for separators and
            for what is none of an image's.
        valid: bool `[B, L]`, False for padding and for what the caller's mask hides.
        past: bool `[B, P]`, the same of what a cache holds in front; None for nothing.
        images: in the order of the prompt, as in the report.
        report: of the call.
        copies: how many rows behind one another are one and the same.
    """

    image: Tensor
    place: Tensor
    valid: Tensor
    past: Tensor | None
    images: tuple[Image, ...]
    report: Report
    copies: int = 1

    @property
    def most(self) -> int:
        """I, images of the row that has most."""
        return max((image.number + 1 for image in self.images), default=0)

    def repeated(self, batch: int) -> Shown:
        """The same for a batch in which every row stands several times, as for beams."""
        times = batch // len(self.image)
        if times == 1:
            return self
        image, place, valid = (
            x.repeat_interleave(times, 0) for x in (self.image, self.place, self.valid)
        )
        past = None if self.past is None else self.past.repeat_interleave(times, 0)
        return replace(self, image=image, place=place, valid=valid, past=past, copies=times)

    def behind(self, past: Tensor) -> Shown:
        """The same behind what a cache holds."""
        return replace(self, past=past)

    def widened(self, front: int, behind: int) -> Shown:
        """The same with columns of text in front and behind: virtual tokens, drafts."""
        if front == behind == 0:
            return self
        pad = torch.nn.functional.pad
        return replace(
            self,
            image=pad(self.image, (front, behind), value=-1),
            place=pad(self.place, (0, 0, front, behind), value=-1),
            valid=pad(self.valid, (front, behind), value=True),
        )


def shown(
    visual: Tensor, valid: Tensor, past: Tensor | None, report: Report, rows: Sequence[int]
) -> Shown:
    """What the columns of a prompt show.

    Args:
        visual: bool `[B, L]`, the columns of images and clips that were encoded.
        valid, past: see `Shown`.
        report: its images in reading order.
        rows: of the batch, of each image.
    """
    images: list[Image] = []
    for row, image in zip(rows, report.images, strict=True):
        number = sum(other.row == row for other in images)
        images.append(Image(row, number, image.tokens_entering))
    device = visual.device
    counts = torch.tensor([image.tokens for image in images], dtype=torch.long)
    numbers = torch.tensor([image.number for image in images], dtype=torch.long)
    of_token = numbers.repeat_interleave(counts).to(device)
    if not len(of_token):
        none = torch.full(visual.shape, -1, device=device)
        return Shown(none, none[..., None].expand(-1, -1, 3), valid, past, tuple(images), report)
    places = torch.cat([_places(each).to(device) for each in report.images])
    here = (visual & valid).flatten()
    nth = (here.cumsum(0) - 1).clamp(0, len(of_token) - 1)
    of_column = torch.where(here, of_token[nth], -1).view(visual.shape)
    place = torch.where(here[:, None], places[nth], -1).view(*visual.shape, 3)
    return Shown(of_column, place, valid, past, tuple(images), report)


def _places(image: ImageReport) -> Tensor:
    """Int64 `[M, 3]`, tile, row and column of what is left of an image in front of any cut."""
    cols = image.patch_grid[1]
    real = image.patch >= 0
    where = torch.stack([image.tile, image.patch // cols, image.patch % cols], 1)
    return torch.where(real[:, None], where, -1)
