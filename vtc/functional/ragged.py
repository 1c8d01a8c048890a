"""Lists of unlike lengths without asking the device how long they are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def to_host(values: Tensor) -> Tensor:
    """`values` on the CPU: the one place where a selection waits for the device.

    A method calls it at most once a batch, with the counts that its own lengths follow from.
    """
    return values.cpu()


def to_device(values: Tensor | Sequence, like: Tensor) -> Tensor:
    """Small values from the CPU to where `like` is, without waiting for what is queued there."""
    return torch.as_tensor(values).to(like.device, non_blocking=True)


def true_places(mask: Tensor, count: int) -> Tensor:
    """Int64 `[count]`: the places of the True entries of a flat mask, of which there are `count`.

    `nonzero` asks the device for that number and waits; here it is known.
    """
    wanted = torch.arange(1, count + 1, device=mask.device)
    return torch.searchsorted(mask.cumsum(0), wanted)


def cat_views(parts: Sequence[Tensor]) -> Tensor:
    """`torch.cat(parts)`; where they are slices of one tensor, one behind the other, no copy.

    The encoders give the tiles of a whole batch in one tensor, of which every image is a slice.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    storage, place, rows = first.untyped_storage()._cdata, first.storage_offset(), 0
    width = [*first.shape[1:]]
    for part in parts:
        count, *rest = part.shape
        if (
            part.storage_offset() != place
            or part.untyped_storage()._cdata != storage
            or part.dtype != first.dtype
            or rest != width
            or part.requires_grad
            or not part.is_contiguous()
        ):
            return torch.cat(list(parts))
        place += part.numel()
        rows += count
    return first.as_strided((rows, *width), first.stride())


def starts_of(lengths: Sequence[int]) -> list[int]:
    """Where each of several lists begins when they are joined."""
    return list(itertools.accumulate(lengths, initial=0))[:-1]


def join_indices(indices: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    """Indices into several lists as indices into those lists joined.

    Args:
        indices: int64 `[M, ...]` for each list.
        lengths: of the lists.
    """
    return joined(indices, starts_of(lengths))


def joined(parts: Sequence[Tensor], steps: Tensor | Sequence[int]) -> Tensor:
    """Tensors behind each other, each with its number of `steps`, on the CPU, added."""
    counts = [len(part) for part in parts]
    shift = torch.as_tensor(steps).repeat_interleave(torch.tensor(counts), output_size=sum(counts))
    shift = shift.reshape(-1, *[1] * (parts[0].dim() - 1))
    return cat_views(parts) + to_device(shift, parts[0])
