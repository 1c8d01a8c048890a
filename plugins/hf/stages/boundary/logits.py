"""`logits_to_keep` in the caller's columns: which places of the short prompt they are.

Trainers ask for the logits of the last columns, or of columns by number, and read the answer column by
column. A column whose token was dropped, and padding, gets the logits of the last token before it that
is left: what the model knows at that place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.plugins.model.compaction import Compaction


def short_places(keep: Any, compaction: Compaction, length: int) -> tuple[Any, Tensor | None]:
    """`logits_to_keep` of the short call.

    Args:
        keep: the caller's, a number of last columns or an int64 `[N]` of columns; 0 and None are all.
        compaction: how the short prompt reads from the caller's `length` columns.

    Returns:
        What to ask for instead, and, where the rows want different places, int64 `[B, N]`: where in the
        answer each row's are.

    Raises:
        VTCError: a column that does not exist.
    """
    if keep is None or (isinstance(keep, int) and keep == 0):
        return keep, None
    device = compaction.slot.device
    if isinstance(keep, int):
        columns = torch.arange(max(length - keep, 0), length, device=device)
    else:
        columns = torch.as_tensor(keep, device=device).flatten()
        columns = torch.where(columns < 0, columns + length, columns)
        if columns.numel() and not 0 <= int(columns.min()) <= int(columns.max()) < length:
            raise VTCError(
                f"logits_to_keep: got columns {keep.tolist()}, allowed are {-length} to {length - 1}"
            )
    valid = compaction.valid
    first = valid.long().argmax(1, keepdim=True)
    after_last = valid.long().cumsum(1) == valid.sum(1, keepdim=True)
    # padding in front of a row stands before all columns, padding behind it after them
    slot = torch.where(valid, compaction.slot, torch.where(after_last, length, -1))
    where = columns.expand(len(slot), -1).contiguous()
    places = torch.searchsorted(slot.contiguous(), where, right=True) - 1
    places = torch.maximum(places, first)
    if len(places) == 1 or bool((places == places[:1]).all()):
        return places[0], None
    union, index = places.unique(return_inverse=True)
    return union, index


def pick(output: Any, index: Tensor, labelled: bool) -> Any:
    """The output of a model with the logits that each row wants.

    Args:
        output: a dictionary or a tuple, in which logits come first, or second behind a loss.
        index: from `short_places`.
        labelled: whether there is a loss.
    """
    if isinstance(output, tuple):
        at = int(labelled)
        return (*output[:at], _rows(output[at], index), *output[at + 1 :])
    output["logits"] = _rows(output["logits"], index)
    return output


def _rows(logits: Tensor, index: Tensor) -> Tensor:
    index = index.to(logits.device)[..., None].expand(-1, -1, logits.shape[-1])
    return logits.gather(1, index)
